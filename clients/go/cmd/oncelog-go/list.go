package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"

	"oncelog.example/oncelog"
	"oncelog.example/oncelog/oncelogv1"
)

func listCommand(follow bool) command {
	return func(flags *flag.FlagSet) func(context.Context, *oncelog.Client) error {
		request := &oncelogv1.ListEventsRequest{Follow: follow}
		flags.StringVar(&request.Topic, "topic", "", "list only this `topic`")
		flags.StringVar(&request.Cursor, "cursor", "", "resume after this `cursor`")
		flags.Uint64Var(&request.Limit, "limit", 0, "print at most this many `events`; 0 for all")
		return func(ctx context.Context, client *oncelog.Client) error {
			return list(ctx, client, request)
		}
	}
}

// list prints events, and at the end, however it comes, the cursor to resume from.
func list(ctx context.Context, client *oncelog.Client, request *oncelogv1.ListEventsRequest) error {
	out := bufio.NewWriter(os.Stdout)
	cursor := request.Cursor
	defer func() {
		if cursor != "" {
			fmt.Fprintf(os.Stderr, "cursor: %s\n", cursor)
		}
	}()
	for response, err := range client.List(ctx, request, oncelog.ReaderOptions{}) {
		if err != nil {
			return err
		}
		for _, event := range response.Events {
			line, err := formatEvent(event)
			if err != nil {
				return fmt.Errorf("sequence %d: %w", event.Sequence, err)
			}
			out.Write(line)
		}
		if err := out.Flush(); err != nil {
			return err
		}
		cursor = response.Cursor
	}
	return nil
}
