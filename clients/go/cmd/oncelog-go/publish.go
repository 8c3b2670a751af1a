package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"oncelog.example/oncelog"
	"oncelog.example/oncelog/oncelogv1"
)

const (
	batchDefault = 100
	// How many batches may wait to be counted; more than a window of the publisher.
	countedMax = 128
)

// summary counts the outcomes. Duplicates include conflicts.
type summary struct {
	Sent       uint64 `json:"sent"`
	Stored     uint64 `json:"stored"`
	Duplicates uint64 `json:"duplicates"`
	Conflicts  uint64 `json:"conflicts"`
	Rejected   uint64 `json:"rejected"`
	Breaks     uint64 `json:"breaks"`
	Resent     uint64 `json:"resent"`
}

// reports receives progress while publishing.
type reports struct {
	acked  func(events uint64)
	broken func(cause error)
}

func publishCommand(flags *flag.FlagSet) func(context.Context, *oncelog.Client) error {
	size := flags.Int("batch", batchDefault, "send this many `events` a request")
	samples := flags.Int("sample", 0, "publish the first `events` of the scenario instead of standard input")
	totals := flags.Bool("totals", false, "use the call Publish: one response with the totals")
	return func(ctx context.Context, client *oncelog.Client) error {
		if *size < 1 || *samples < 0 {
			return errors.New("--batch must be at least 1, and --sample at least 0")
		}
		events := lines(os.Stdin, *size)
		if *samples > 0 {
			events = sample(*samples, *size, 0)
		}
		if *totals {
			return publishForTotals(ctx, client, events)
		}
		return publish(ctx, client, events, reports{
			acked: func(uint64) {},
			broken: func(cause error) {
				fmt.Fprintf(os.Stderr, "the stream broke: %s\n", describe(cause))
			},
		})
	}
}

// publish publishes with an outcome for every event, and prints the summary.
func publish(ctx context.Context, client *oncelog.Client, events source, reports reports) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sum summary
	publisher := client.Publisher(oncelog.PublisherOptions{OnBreak: func(cause error) {
		sum.Breaks++
		reports.broken(cause)
	}})
	err := sum.fill(ctx, publisher, events, reports)
	if err != nil {
		// Does not wait for unacked events.
		cancel()
	}
	if closed := publisher.Close(ctx); err == nil {
		err = closed
	}
	sum.Resent = uint64(publisher.Resent())
	if printed := sum.print(); err == nil {
		err = printed
	}
	return err
}

// print prints the summary, and fails if not all of it is good.
func (s *summary) print() error {
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return err
	}
	if s.Rejected > 0 {
		return errRejected
	}
	return nil
}

// fill sends all events, and counts their outcomes.
func (s *summary) fill(ctx context.Context, publisher *oncelog.Publisher, events source, reports reports) error {
	type sent struct {
		batch
		ack *oncelog.Ack
	}
	sending := make(chan sent, countedMax)
	var end error
	// Nobody waits for it, because it may be reading from a terminal.
	go func() {
		defer close(sending)
		end = events(ctx, func(batch batch) error {
			item := sent{batch: batch}
			if batch.rejected == "" {
				ack, err := publisher.Send(ctx, batch.events...)
				if err != nil {
					return err
				}
				item.ack = ack
			}
			select {
			case sending <- item:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	for {
		select {
		case item, more := <-sending:
			if !more {
				return end
			}
			if item.ack == nil {
				s.Sent++
				s.reject(item.lines[0], item.rejected)
				continue
			}
			outcomes, err := item.ack.Wait(ctx)
			if err != nil {
				return err
			}
			s.count(item.lines, outcomes)
			reports.acked(s.Sent)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *summary) count(lines []int, outcomes []*oncelogv1.EventOutcome) {
	for i, outcome := range outcomes {
		s.Sent++
		switch outcome.Outcome {
		case oncelogv1.Outcome_OUTCOME_STORED:
			s.Stored++
		case oncelogv1.Outcome_OUTCOME_CONFLICT:
			s.Conflicts++
			s.Duplicates++
		case oncelogv1.Outcome_OUTCOME_DUPLICATE:
			s.Duplicates++
		case oncelogv1.Outcome_OUTCOME_REJECTED:
			s.reject(lines[i], outcome.Reason)
		default:
			s.reject(lines[i], fmt.Sprintf("unknown outcome %v", outcome.Outcome))
		}
	}
}

func (s *summary) reject(line int, reason string) {
	s.Rejected++
	fmt.Fprintf(os.Stderr, "line %d: rejected: %s\n", line, reason)
}

// publishForTotals publishes with one response for all events, and prints it.
func publishForTotals(ctx context.Context, client *oncelog.Client, events source) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := client.RPC().Publish(ctx)
	if err != nil {
		return err
	}
	var sum summary
	sent := make(chan struct{})
	// Waited for only when the call has succeeded: it may be reading from a terminal.
	go func() {
		defer close(sent)
		err := events(ctx, func(batch batch) error {
			if batch.rejected != "" {
				sum.Sent++
				sum.reject(batch.lines[0], batch.rejected)
				return nil
			}
			if stream.Send(&oncelogv1.PublishRequest{Events: batch.events}) != nil {
				return errAnswered
			}
			return nil
		})
		switch {
		case errors.Is(err, errAnswered):
		case err != nil:
			cancel(err)
		default:
			_ = stream.CloseSend()
		}
	}()
	answer := new(oncelogv1.PublishResponse)
	if err := stream.RecvMsg(answer); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	<-sent
	sum.Sent += answer.Received
	sum.Stored = answer.UniqueProcessed
	sum.Duplicates = answer.DuplicateDropped
	sum.Conflicts = answer.Conflicts
	return sum.print()
}

// errAnswered stops sending events to a call that already has its response.
var errAnswered = errors.New("the call has ended")
