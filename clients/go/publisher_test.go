package oncelog

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"oncelog.example/oncelog/oncelogv1"
)

const (
	stored    = oncelogv1.Outcome_OUTCOME_STORED
	duplicate = oncelogv1.Outcome_OUTCOME_DUPLICATE
)

func send(t *testing.T, publisher *Publisher, id string) *Ack {
	t.Helper()
	ack, err := publisher.Send(t.Context(), &oncelogv1.Event{EventId: id})
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

func expectOutcome(t *testing.T, ack *Ack, expected oncelogv1.Outcome) {
	t.Helper()
	outcomes, err := ack.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(outcomes) != 1 || outcomes[0].Outcome != expected {
		t.Fatalf("expected %v, got %v", expected, outcomes)
	}
}

func TestUnackedRequestsAreResentInOrder(t *testing.T) {
	fake, client := startFake(t)
	var breaks []error
	publisher := client.Publisher(PublisherOptions{OnBreak: func(cause error) { breaks = append(breaks, cause) }})
	a, b, c := send(t, publisher, "a"), send(t, publisher, "b"), send(t, publisher, "c")

	first := <-fake.publishes
	for _, id := range []string{"a", "b", "c"} {
		if got := first.expect(t); got != id {
			t.Fatalf("expected %s first, got %s", id, got)
		}
	}
	first.ack(t, 1, stored)
	expectOutcome(t, a, stored)
	first.end <- status.Error(codes.Unavailable, "stopping")

	second := <-fake.publishes
	d := send(t, publisher, "d")
	for i, id := range []string{"b", "c", "d"} {
		if got := second.expect(t); got != id {
			t.Fatalf("expected %s again, got %s", id, got)
		}
		second.ack(t, uint64(i)+1, duplicate)
	}
	for _, ack := range []*Ack{b, c, d} {
		expectOutcome(t, ack, duplicate)
	}

	second.end <- nil
	if err := publisher.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(breaks) != 1 || status.Code(breaks[0]) != codes.Unavailable {
		t.Fatalf("expected one break, got %v", breaks)
	}
	if publisher.Resent() != 2 {
		t.Fatalf("expected 2 events resent, got %d", publisher.Resent())
	}
	if _, err := publisher.Send(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("expected ErrClosed, got %v", err)
	}
}

func TestARefusalIsFinalAndNamesTheFault(t *testing.T) {
	fake, client := startFake(t)
	publisher := client.Publisher(PublisherOptions{})
	ack := send(t, publisher, "a")
	refusal, err := status.New(codes.InvalidArgument, "request 0: too many events").WithDetails(
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "events", Description: "too many"},
		}},
		&errdetails.ErrorInfo{Reason: "INVALID_REQUEST", Metadata: map[string]string{"request": "0"}},
	)
	if err != nil {
		t.Fatal(err)
	}
	(<-fake.publishes).end <- refusal.Err()

	_, waited := ack.Wait(t.Context())
	_, sent := publisher.Send(t.Context())
	for _, err := range []error{waited, publisher.Close(t.Context()), sent} {
		violations, info := Details(err)
		if len(violations) != 1 || violations[0].Field != "events" || info.Metadata["request"] != "0" {
			t.Fatalf("expected the refusal, got %v with %v, %v", err, violations, info)
		}
	}
}

func TestSilenceIsABreak(t *testing.T) {
	fake, client := startFake(t)
	var breaks []error
	publisher := client.Publisher(PublisherOptions{
		AckTimeout: 100 * time.Millisecond,
		OnBreak:    func(cause error) { breaks = append(breaks, cause) },
	})
	ack := send(t, publisher, "a")
	(<-fake.publishes).expect(t)
	again := <-fake.publishes
	again.expect(t)
	again.ack(t, 1, stored)
	expectOutcome(t, ack, stored)
	again.end <- nil
	if err := publisher.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(breaks) == 0 || status.Code(breaks[0]) != codes.DeadlineExceeded {
		t.Fatalf("expected no ack in time, got %v", breaks)
	}
}

func TestAServerThatMiscountsIsNotTrusted(t *testing.T) {
	fake, client := startFake(t)
	publisher := client.Publisher(PublisherOptions{})
	ack := send(t, publisher, "a")
	call := <-fake.publishes
	call.expect(t)
	call.ack(t, 2, stored)
	_, err := ack.Wait(t.Context())
	if violation := (*contractError)(nil); !errors.As(err, &violation) {
		t.Fatalf("expected a broken contract, got %v", err)
	}
}

func TestTheWindowHoldsSendBack(t *testing.T) {
	fake, client := startFake(t)
	publisher := client.Publisher(PublisherOptions{RequestsInFlightMax: 1})
	ack := send(t, publisher, "a")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := publisher.Send(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("expected no room, got %v", err)
	}
	call := <-fake.publishes
	call.expect(t)
	call.ack(t, 1, stored)
	expectOutcome(t, ack, stored)
	send(t, publisher, "b")
	if got := call.expect(t); got != "b" {
		t.Fatalf("expected b, got %s", got)
	}
	if err := publisher.Close(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("expected an error because b is unacked, got %v", err)
	}
}

func TestItGivesUp(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Nobody listens there any more.
	listener.Close()
	client, err := Dial(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	publisher := client.Publisher(PublisherOptions{GiveUpAfter: 100 * time.Millisecond, OnBreak: func(error) {}})
	ack := send(t, publisher, "a")
	if _, err := ack.Wait(t.Context()); status.Code(err) != codes.Unavailable {
		t.Fatalf("expected that there is no server, got %v", err)
	}
}
