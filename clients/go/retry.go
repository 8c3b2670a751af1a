package oncelog

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// The longest wait after the first failure, and after any.
	delayInitial = 50 * time.Millisecond
	delayMax     = 5 * time.Second
)

// retry decides whether to reopen a broken stream, and waits before that.
type retry struct {
	server      string
	giveUpAfter time.Duration
	onBreak     func(cause error)
	delay       time.Duration
	brokenSince time.Time
}

// progress forgets the failures so far.
func (r *retry) progress() {
	r.delay = 0
}

// wait waits before the next attempt. It returns an error if there is none.
func (r *retry) wait(ctx context.Context, failure error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !transient(status.Code(failure)) {
		return failure
	}
	r.onBreak(failure)
	if r.delay == 0 {
		r.delay = delayInitial
		r.brokenSince = time.Now()
	} else {
		r.delay = min(2*r.delay, delayMax)
	}
	left := r.giveUpAfter - time.Since(r.brokenSince)
	if left <= 0 {
		// With the code and the details of the failure.
		end := status.Convert(failure).Proto()
		end.Message = fmt.Sprintf("gave up on %s after %v without progress: %s", r.server, r.giveUpAfter, end.Message)
		return status.ErrorProto(end)
	}
	// At least half of the delay; the rest is random, so that clients cut off together do not all come back at once.
	jittered := r.delay/2 + rand.N(r.delay/2)
	select {
	case <-time.After(min(jittered, left)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// warn reports a broken stream if OnBreak is not set.
func warn(cause error) {
	slog.Warn("the stream broke; reconnecting", "cause", cause)
}

// transient reports whether a call that failed with code may succeed when retried.
func transient(code codes.Code) bool {
	switch code {
	// The codes of a broken connection, a server that starts or stops, and a full disk that may heal.
	case codes.Unavailable, codes.Canceled, codes.Unknown, codes.Internal,
		codes.ResourceExhausted, codes.DeadlineExceeded, codes.Aborted:
		return true
	default:
		return false
	}
}
