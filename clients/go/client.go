// Package oncelog is a client of the oncelog event aggregator: a [Publisher] that resends until its events are
// durable, and a [Client.List] that resumes where it was. Copy it, or require the module.
package oncelog

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"oncelog.example/oncelog/oncelogv1"
)

//go:generate buf generate
//go:generate cp ../service_config.json .

// gRPC's own behaviour: it retries unary calls, and spreads calls over the addresses of a name.
//
//go:embed service_config.json
var serviceConfig string

const (
	// The largest event that a server can be configured to accept (16 MiB), and room for its envelope.
	messageBytesMax = 16<<20 + 64<<10
	// How long connecting may take.
	connectTimeout = 5 * time.Second
	// How long a connection may be silent before it is probed, and how long the reply may take.
	keepaliveInterval = 15 * time.Second
	keepaliveTimeout  = 10 * time.Second
)

// Client calls one server. Unary calls share a connection; every publisher and list has its own.
type Client struct {
	server  string
	options []grpc.DialOption
	conn    *grpc.ClientConn
}

// Dial makes a client of server, host:port. It connects on the first call.
func Dial(server string, options ...grpc.DialOption) (*Client, error) {
	c := &Client{server: strings.TrimPrefix(server, "http://")}
	c.options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  delayInitial,
				Multiplier: 2,
				Jitter:     0.2,
				MaxDelay:   delayMax,
			},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                keepaliveInterval,
			Timeout:             keepaliveTimeout,
			PermitWithoutStream: true,
		}),
	}, options...)
	conn, err := c.connection()
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return c, nil
}

// Close ends the connection of the unary calls. Publishers have a Close of their own.
func (c *Client) Close() error {
	return c.conn.Close()
}

// RPC returns the generated client, for calls that need neither resending nor resuming.
func (c *Client) RPC() oncelogv1.AggregatorServiceClient {
	return oncelogv1.NewAggregatorServiceClient(c.conn)
}

// Stats returns the counters of the server and of its topics.
func (c *Client) Stats(ctx context.Context) (*oncelogv1.GetStatsResponse, error) {
	return c.RPC().GetStats(ctx, &oncelogv1.GetStatsRequest{})
}

// connection makes a connection, which connects on its first call.
func (c *Client) connection() (*grpc.ClientConn, error) {
	if _, _, err := net.SplitHostPort(c.server); err != nil {
		return nil, fmt.Errorf("%q is not the address of a server; expected host:port", c.server)
	}
	return grpc.NewClient(c.server, c.options...)
}
