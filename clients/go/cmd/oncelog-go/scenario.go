package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"oncelog.example/oncelog"
	"oncelog.example/oncelog/oncelogv1"
)

const (
	scenarioEvents           = 5000
	scenarioEventsPerRequest = 50
	scenarioTopics           = 10
)

var scenarioStart = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

func scenarioCommand(flags *flag.FlagSet) func(context.Context, *oncelog.Client) error {
	events := flags.Int("events", scenarioEvents, "publish this many `events`")
	rate := flags.Int("rate", 0, "publish at most this many `events` a second; 0 for no limit")
	return func(ctx context.Context, client *oncelog.Client) error {
		if *events < 1 || *rate < 0 {
			return errors.New("--events must be at least 1, and --rate at least 0")
		}
		out := json.NewEncoder(os.Stdout)
		return publish(ctx, client, sample(*events, scenarioEventsPerRequest, *rate), reports{
			acked:  func(events uint64) { _ = out.Encode(map[string]uint64{"acked": events}) },
			broken: func(cause error) { _ = out.Encode(map[string]string{"broken": describe(cause)}) },
		})
	}
}

// sample makes the first events of the scenario, size per batch, at most rate per second; 0 for no limit.
func sample(events, size, rate int) source {
	return func(ctx context.Context, pass func(batch) error) error {
		for first := 0; first < events; first += size {
			if rate > 0 && first > 0 {
				// No catching up after a pause, so that there is always a middle in which to kill the server.
				select {
				case <-time.After(time.Duration(size) * time.Second / time.Duration(rate)):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			var next batch
			for position := first; position < min(first+size, events); position++ {
				next.lines = append(next.lines, position+1)
				next.events = append(next.events, sampleEvent(numberAt(position)))
			}
			if err := pass(next); err != nil {
				return err
			}
		}
		return nil
	}
}

// numberAt returns the number of the event at position: every fifth is a resend.
func numberAt(position int) int {
	if position%5 == 4 {
		return position/5*2 + 2
	}
	return position/5*4 + position%5
}

// sampleEvent makes the event with this number, which is always the same.
func sampleEvent(number int) *oncelogv1.Event {
	payload := &structpb.Struct{Fields: map[string]*structpb.Value{
		"number": structpb.NewNumberValue(float64(number)),
	}}
	return &oncelogv1.Event{
		Topic:      fmt.Sprintf("scenario-%d", number%scenarioTopics),
		EventId:    fmt.Sprintf("event-%d", number),
		Timestamp:  timestamppb.New(scenarioStart.Add(time.Duration(number) * time.Second)),
		Source:     "clients/go",
		Payload:    &oncelogv1.Event_Json{Json: payload},
		Attributes: map[string]string{"region": "eu"},
	}
}
