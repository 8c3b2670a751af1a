package oncelog

import (
	"net"
	"testing"

	"google.golang.org/grpc"

	"oncelog.example/oncelog/oncelogv1"
)

// fake is a server whose calls the test plays, one after the other.
type fake struct {
	oncelogv1.UnimplementedAggregatorServiceServer
	publishes chan *publishCall
	lists     chan *listCall
}

type publishCall struct {
	oncelogv1.AggregatorService_StreamingPublishServer
	end chan error
}

type listCall struct {
	oncelogv1.AggregatorService_ListEventsServer
	request *oncelogv1.ListEventsRequest
	end     chan error
}

// startFake starts a server on its own port, and makes a client for it.
func startFake(t *testing.T) (*fake, *Client) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{publishes: make(chan *publishCall), lists: make(chan *listCall)}
	server := grpc.NewServer()
	oncelogv1.RegisterAggregatorServiceServer(server, f)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	client, err := Dial(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return f, client
}

func (f *fake) StreamingPublish(stream oncelogv1.AggregatorService_StreamingPublishServer) error {
	call := &publishCall{stream, make(chan error, 1)}
	f.publishes <- call
	select {
	case err := <-call.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (f *fake) ListEvents(
	request *oncelogv1.ListEventsRequest, stream oncelogv1.AggregatorService_ListEventsServer,
) error {
	call := &listCall{stream, request, make(chan error, 1)}
	f.lists <- call
	select {
	case err := <-call.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// expect receives a request of one event, and returns its id.
func (c *publishCall) expect(t *testing.T) string {
	t.Helper()
	request, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return request.Events[0].EventId
}

// ack answers a request of one event.
func (c *publishCall) ack(t *testing.T, acknowledged uint64, outcome oncelogv1.Outcome) {
	t.Helper()
	err := c.Send(&oncelogv1.StreamingPublishResponse{
		AcknowledgedRequests: acknowledged,
		Outcomes:             []*oncelogv1.EventOutcome{{Outcome: outcome}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// send sends the events with these sequences.
func (c *listCall) send(t *testing.T, cursor string, sequences ...uint64) {
	t.Helper()
	response := &oncelogv1.ListEventsResponse{Cursor: cursor}
	for _, sequence := range sequences {
		response.Events = append(response.Events, &oncelogv1.StoredEvent{Sequence: sequence})
	}
	if err := c.Send(response); err != nil {
		t.Error(err)
	}
}
