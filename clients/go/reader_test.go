package oncelog

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"oncelog.example/oncelog/oncelogv1"
)

// read lists to the end, or until it has seen enough, and returns the sequences.
func read(
	t *testing.T, client *Client, request *oncelogv1.ListEventsRequest, options ReaderOptions, enough int,
) ([]uint64, error) {
	t.Helper()
	options.OnBreak = func(error) {}
	var sequences []uint64
	for response, err := range client.List(t.Context(), request, options) {
		if err != nil {
			return sequences, err
		}
		for _, event := range response.Events {
			sequences = append(sequences, event.Sequence)
		}
		if len(sequences) >= enough {
			break
		}
	}
	return sequences, nil
}

func TestABrokenListGoesOnAfterTheLastEvent(t *testing.T) {
	fake, client := startFake(t)
	second := make(chan *oncelogv1.ListEventsRequest, 1)
	go func() {
		call := <-fake.lists
		call.send(t, "after 2", 1, 2)
		call.send(t, "after 3", 3)
		call.end <- status.Error(codes.Unavailable, "stopping")
		call = <-fake.lists
		second <- call.request
		call.send(t, "after 5", 4, 5)
		call.end <- status.Error(codes.Unavailable, "never seen")
	}()
	request := &oncelogv1.ListEventsRequest{Topic: "t", Limit: 5}
	sequences, err := read(t, client, request, ReaderOptions{}, 100)
	if err != nil || !slices.Equal(sequences, []uint64{1, 2, 3, 4, 5}) {
		t.Fatalf("expected 1 to 5, got %v, %v", sequences, err)
	}
	again := <-second
	if again.Topic != "t" || again.Cursor != "after 3" || again.Limit != 2 {
		t.Fatalf("expected to ask for what is left, asked for %v", again)
	}
	if request.Cursor != "" || request.Limit != 5 {
		t.Fatalf("the caller's request became %v", request)
	}
}

func TestOnlyAListThatFollowsGoesOnWhenTheServerEndsIt(t *testing.T) {
	fake, client := startFake(t)
	for _, follow := range []bool{false, true} {
		go func() {
			call := <-fake.lists
			call.send(t, "after 1", 1)
			call.end <- nil
			if follow {
				(<-fake.lists).send(t, "after 2", 2)
			}
		}()
		sequences, err := read(t, client, &oncelogv1.ListEventsRequest{Follow: follow}, ReaderOptions{}, 2)
		if expected := map[bool]int{false: 1, true: 2}[follow]; err != nil || len(sequences) != expected {
			t.Fatalf("follow %v: expected %d events, got %v, %v", follow, expected, sequences, err)
		}
	}
}

func TestARefusedListIsAnError(t *testing.T) {
	fake, client := startFake(t)
	go func() { (<-fake.lists).end <- status.Error(codes.InvalidArgument, "cursor: not a cursor") }()
	_, err := read(t, client, &oncelogv1.ListEventsRequest{Cursor: "x"}, ReaderOptions{}, 1)
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("expected the refusal, got %v", err)
	}
}

func TestAListThatFollowsIsNotSilentForLong(t *testing.T) {
	fake, client := startFake(t)
	go func() {
		(<-fake.lists).send(t, "after 1", 1)
		(<-fake.lists).send(t, "after 2", 2)
	}()
	options := ReaderOptions{SilenceMax: 100 * time.Millisecond}
	sequences, err := read(t, client, &oncelogv1.ListEventsRequest{Follow: true}, options, 2)
	if err != nil || !slices.Equal(sequences, []uint64{1, 2}) {
		t.Fatalf("expected 1 and 2, got %v, %v", sequences, err)
	}
}
