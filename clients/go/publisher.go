package oncelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"oncelog.example/oncelog/oncelogv1"
)

// ErrClosed is the error of a closed publisher.
var ErrClosed = errors.New("the publisher is closed")

// PublisherOptions are the limits of a [Publisher]; zero values stand for the defaults.
type PublisherOptions struct {
	// RequestsInFlightMax is how many requests may be unacked. Default 64.
	RequestsInFlightMax int
	// BytesInFlightMax is how many bytes they may have together, encoded; a larger request travels alone.
	// Default 16 MiB.
	BytesInFlightMax int
	// AckTimeout is how long the server may acknowledge nothing before the stream counts as broken. Default 30 s.
	AckTimeout time.Duration
	// GiveUpAfter is how long to keep retrying after the first break without an ack. Default 60 s.
	GiveUpAfter time.Duration
	// OnBreak is called for every stream, or attempt at one, that ends with events unacked. Default: a warning of
	// package slog.
	OnBreak func(cause error)
}

func (o *PublisherOptions) setDefaults() {
	setDefault(&o.RequestsInFlightMax, 64)
	setDefault(&o.BytesInFlightMax, 16<<20)
	setDefault(&o.AckTimeout, 30*time.Second)
	setDefault(&o.GiveUpAfter, 60*time.Second)
	if o.OnBreak == nil {
		o.OnBreak = warn
	}
}

// Publisher publishes events over one StreamingPublish stream until they are durable.
//
// When the stream breaks, the publisher reconnects, waiting longer each time, and resends the unacknowledged
// requests, in order and before anything new. The server drops events it has already stored, so nothing is stored
// twice; but an event whose ack was lost then has OUTCOME_DUPLICATE.
//
// It may be used by several goroutines. After the first error it stays failed.
type Publisher struct {
	client  *Client
	options PublisherOptions
	retry   retry

	requests *semaphore.Weighted
	bytes    *semaphore.Weighted

	ctx    context.Context // ends with the publisher; its cause is the reason
	cancel context.CancelCauseFunc
	wake   chan struct{} // holds a token when the fields below have changed
	done   chan struct{}

	mu       sync.Mutex
	unacked  []*Ack // in order; the first `sent` of them are on the stream
	sent     int
	resent   int // events
	closed   bool
	progress time.Time // of the last ack, or of the start of waiting for the next
	err      error
}

// Publisher makes a publisher, which connects when there is something to send. Close it.
func (c *Client) Publisher(options PublisherOptions) *Publisher {
	options.setDefaults()
	p := &Publisher{
		client:   c,
		options:  options,
		retry:    retry{server: c.server, giveUpAfter: options.GiveUpAfter, onBreak: options.OnBreak},
		requests: semaphore.NewWeighted(int64(options.RequestsInFlightMax)),
		bytes:    semaphore.NewWeighted(int64(options.BytesInFlightMax)),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	go p.run()
	return p
}

// Ack is the future acknowledgement of one request.
type Ack struct {
	request  *oncelogv1.StreamingPublishRequest
	bytes    int64
	sent     bool // on some stream
	done     chan struct{}
	outcomes []*oncelogv1.EventOutcome
	err      error
}

// Wait waits for the ack: one outcome per event, in the order of the events. Every event not rejected is durable.
func (a *Ack) Wait(ctx context.Context) ([]*oncelogv1.EventOutcome, error) {
	select {
	case <-a.done:
		return a.outcomes, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Send sends events as one request, waiting while too many events are unacknowledged. Waiting for the ack is optional:
// the request is resent until acked anyway. The events must not be changed until then.
func (p *Publisher) Send(ctx context.Context, events ...*oncelogv1.Event) (*Ack, error) {
	request := &oncelogv1.StreamingPublishRequest{Events: events}
	ack := &Ack{
		request: request,
		bytes:   min(int64(proto.Size(request)), int64(p.options.BytesInFlightMax)),
		done:    make(chan struct{}),
	}
	if err := p.enter(ctx, ack); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.leave(ack)
		return nil, p.reason()
	}
	if len(p.unacked) == 0 {
		p.progress = time.Now()
	}
	p.unacked = append(p.unacked, ack)
	p.signal()
	return ack, nil
}

// Close sends nothing more, and waits until everything sent is acked. If ctx ends first, the rest may or may not
// be stored.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.progress = time.Now()
	}
	p.mu.Unlock()
	p.signal()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.cancel(context.Cause(ctx))
		<-p.done
	}
	return p.err
}

// Resent returns how many events were sent again because a stream broke.
func (p *Publisher) Resent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resent
}

// enter waits for room in the window.
func (p *Publisher) enter(ctx context.Context, ack *Ack) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(context.Cause(p.ctx)) })()
	if p.requests.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	if p.bytes.Acquire(ctx, ack.bytes) != nil {
		p.requests.Release(1)
		return context.Cause(ctx)
	}
	return nil
}

func (p *Publisher) leave(ack *Ack) {
	p.requests.Release(1)
	p.bytes.Release(ack.bytes)
}

// reason returns why nothing can be sent any more.
func (p *Publisher) reason() error {
	if p.err != nil {
		return p.err
	}
	return ErrClosed
}

func (p *Publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run publishes until closed, or until the first error, which all later calls return.
func (p *Publisher) run() {
	err := p.publish()
	p.mu.Lock()
	p.closed = true
	p.err = err
	for _, ack := range p.unacked {
		ack.err = err
		close(ack.done)
	}
	p.unacked = nil
	p.cancel(p.reason())
	p.mu.Unlock()
	close(p.done)
}

func (p *Publisher) publish() error {
	for p.pending() {
		err := p.stream()
		if violation := (*contractError)(nil); errors.As(err, &violation) {
			return err
		}
		if !p.waiting() {
			// Nothing was waiting for this stream; the next request opens another.
			continue
		}
		if err := p.retry.wait(p.ctx, err); err != nil {
			return err
		}
	}
	if p.waiting() {
		return context.Cause(p.ctx)
	}
	return nil
}

// pending waits for something to send. It returns false if nothing will be sent any more.
func (p *Publisher) pending() bool {
	for {
		p.mu.Lock()
		pending, closed := len(p.unacked) > 0, p.closed
		p.mu.Unlock()
		if p.ctx.Err() != nil || pending || closed {
			return p.ctx.Err() == nil && pending
		}
		select {
		case <-p.wake:
		case <-p.ctx.Done():
		}
	}
}

// waiting reports whether a request is unacked.
func (p *Publisher) waiting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.unacked) > 0
}

// stream sends the unacked requests on a new stream, and new ones as they come, until the stream ends.
func (p *Publisher) stream() error {
	ctx, cancel := context.WithCancelCause(p.ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)

	p.mu.Lock()
	p.sent = 0
	p.progress = time.Now()
	p.mu.Unlock()
	tasks.Go(func() { p.watch(ctx, cancel) })

	// Its own connection, so that no attempt reuses a dead one.
	conn, err := p.client.connection()
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := oncelogv1.NewAggregatorServiceClient(conn).StreamingPublish(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	tasks.Go(func() { p.send(ctx, stream) })
	for acked := uint64(1); ; acked++ {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.Unavailable, "the server ended the stream")
		}
		if err != nil {
			return cause(ctx, err)
		}
		if err := p.acknowledge(response, acked); err != nil {
			return err
		}
	}
}

// send sends requests in order, until no more will come, or the stream breaks.
func (p *Publisher) send(ctx context.Context, stream oncelogv1.AggregatorService_StreamingPublishClient) {
	for {
		p.mu.Lock()
		var next *Ack
		if p.sent < len(p.unacked) {
			next = p.unacked[p.sent]
			p.sent++
			if next.sent {
				p.resent += len(next.request.Events)
			}
			next.sent = true
		}
		closed := p.closed
		p.mu.Unlock()

		switch {
		case next != nil:
			if stream.Send(next.request) != nil {
				return // Recv returns the reason.
			}
		case closed:
			_ = stream.CloseSend()
			return
		default:
			select {
			case <-p.wake:
			case <-ctx.Done():
				return
			}
		}
	}
}

// watch cancels a stream whose acks do not come.
func (p *Publisher) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(p.options.AckTimeout / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		waiting := len(p.unacked) > 0 || p.closed
		late := time.Since(p.progress) >= p.options.AckTimeout
		p.mu.Unlock()
		if waiting && late {
			cancel(status.Errorf(codes.DeadlineExceeded, "no ack for %v", p.options.AckTimeout))
			return
		}
	}
}

// acknowledge takes the acked-th response of a stream for the oldest request.
func (p *Publisher) acknowledge(response *oncelogv1.StreamingPublishResponse, acked uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if response.AcknowledgedRequests != acked || p.sent == 0 {
		return contractErrorf("response %d of a stream acknowledges %d requests, %d are unacked",
			acked, response.AcknowledgedRequests, p.sent)
	}
	ack := p.unacked[0]
	if len(response.Outcomes) != len(ack.request.Events) {
		return contractErrorf("%d outcomes for a request of %d events",
			len(response.Outcomes), len(ack.request.Events))
	}
	p.unacked[0] = nil
	p.unacked = p.unacked[1:]
	p.sent--
	p.progress = time.Now()
	p.retry.progress()
	ack.outcomes = response.Outcomes
	close(ack.done)
	p.leave(ack)
	return nil
}

// contractError is a violation of the contract by the server.
type contractError struct{ description string }

func contractErrorf(format string, args ...any) error {
	return &contractError{fmt.Sprintf(format, args...)}
}

func (e *contractError) Error() string {
	return "the server broke the contract: " + e.description
}

// cause returns why ctx was cancelled if it was, and else err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
