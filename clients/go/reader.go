package oncelog

import (
	"context"
	"errors"
	"io"
	"iter"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"oncelog.example/oncelog/oncelogv1"
)

// ReaderOptions are the limits of a [Client.List]; zero values stand for the defaults.
type ReaderOptions struct {
	// SilenceMax is how long a list that follows may be silent before it counts as broken; the server sends something
	// every 15 s. Default 45 s.
	SilenceMax time.Duration
	// GiveUpAfter is how long to keep retrying after the first break without a response. Default 60 s.
	GiveUpAfter time.Duration
	// OnBreak is called for every stream, or attempt at one, that ends too early. Default: a warning of package slog.
	OnBreak func(cause error)
}

func (o *ReaderOptions) setDefaults() {
	setDefault(&o.SilenceMax, 45*time.Second)
	setDefault(&o.GiveUpAfter, 60*time.Second)
	if o.OnBreak == nil {
		o.OnBreak = warn
	}
}

// List reads a ListEvents stream to its end, resuming it when it breaks, without gap or repeat. A list that follows
// without a limit ends only with ctx.
//
// The cursor of each response resumes after it: store it with the results of its events, and pass it to the next
// List. A response may hold no events. The one exception: a list from START_POSITION_LATEST that breaks before its
// first response starts again at the tail of that moment.
func (c *Client) List(
	ctx context.Context, request *oncelogv1.ListEventsRequest, options ReaderOptions,
) iter.Seq2[*oncelogv1.ListEventsResponse, error] {
	options.setDefaults()
	return func(yield func(*oncelogv1.ListEventsResponse, error) bool) {
		r := reader{
			client:  c,
			options: options,
			retry:   retry{server: c.server, giveUpAfter: options.GiveUpAfter, onBreak: options.OnBreak},
			request: proto.CloneOf(request),
		}
		for {
			ended, err := r.stream(ctx, yield)
			if ended {
				return
			}
			if err := r.retry.wait(ctx, err); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

type reader struct {
	client  *Client
	options ReaderOptions
	retry   retry
	// The rest of the request: the cursor and the limit move as events arrive.
	request *oncelogv1.ListEventsRequest
}

// stream yields the responses of one stream. It returns whether the list has ended, and how the stream broke if not.
func (r *reader) stream(
	ctx context.Context, yield func(*oncelogv1.ListEventsResponse, error) bool,
) (bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silenceMax := r.options.SilenceMax
	if !r.request.Follow {
		// Only a list that follows sends something all the time.
		silenceMax = math.MaxInt64
	}
	silence := time.AfterFunc(silenceMax, func() {
		cancel(status.Errorf(codes.DeadlineExceeded, "nothing from the server for %v", silenceMax))
	})
	defer silence.Stop()

	// Its own connection, so that no attempt reuses a dead one.
	conn, err := r.client.connection()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stream, err := oncelogv1.NewAggregatorServiceClient(conn).ListEvents(ctx, proto.CloneOf(r.request))
	if err != nil {
		return false, cause(ctx, err)
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return !r.request.Follow, status.Error(codes.Unavailable, "the server ended the stream")
		}
		if err != nil {
			return false, cause(ctx, err)
		}
		// A caller that takes long with a response does not make the server silent.
		silence.Stop()
		last := r.advance(response)
		if !yield(response, nil) || last {
			return true, nil
		}
		silence.Reset(silenceMax)
	}
}

// advance moves past response. It returns whether nothing is left.
func (r *reader) advance(response *oncelogv1.ListEventsResponse) bool {
	r.retry.progress()
	r.request.Cursor = response.Cursor
	if r.request.Limit == 0 {
		return false
	}
	r.request.Limit -= min(r.request.Limit, uint64(len(response.Events)))
	// To the server 0 means no limit, so it must not be sent at the end.
	return r.request.Limit == 0
}
