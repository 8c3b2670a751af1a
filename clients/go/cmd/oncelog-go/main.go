// Command oncelog-go publishes events to an oncelog server and reads them back. clients/README.md describes it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"oncelog.example/oncelog"
)

const usage = `usage: oncelog-go COMMAND [--server HOST:PORT] [FLAGS]

  publish   publish the events of standard input, one JSON object per line
  list      print stored events
  follow    print stored events, and go on as events come
  stats     print the counters of the server
  scenario  publish the events that prove a client

oncelog-go COMMAND --help lists the flags of a command.
`

const (
	statusRejected    = 1
	statusFailed      = 2
	statusInterrupted = 130
)

// errRejected ends a command that succeeded except for rejected events.
var errRejected = errors.New("events were rejected")

// command registers its flags, and returns what to do once they are parsed.
type command func(flags *flag.FlagSet) func(ctx context.Context, client *oncelog.Client) error

var commands = map[string]command{
	"publish":  publishCommand,
	"list":     listCommand(false),
	"follow":   listCommand(true),
	"stats":    statsCommand,
	"scenario": scenarioCommand,
}

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(arguments []string) int {
	if len(arguments) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return statusFailed
	}
	name := arguments[0]
	if name == "help" || name == "-h" || name == "--help" {
		fmt.Print(usage)
		return 0
	}
	command, found := commands[name]
	if !found {
		fmt.Fprintf(os.Stderr, "error: there is no command %q\n\n%s", name, usage)
		return statusFailed
	}
	flags := flag.NewFlagSet("oncelog-go "+name, flag.ContinueOnError)
	server := flags.String("server", defaultServer(), "`host:port` of the server; also ONCELOG_SERVER")
	work := command(flags)
	if err := flags.Parse(arguments[1:]); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return statusFailed
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "error: %q is too much; %s takes flags only\n", flags.Arg(0), name)
		return statusFailed
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := serve(ctx, *server, work)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errRejected):
		return statusRejected
	case ctx.Err() != nil:
		return statusInterrupted
	default:
		printError(err, *server)
		return statusFailed
	}
}

func defaultServer() string {
	if server := os.Getenv("ONCELOG_SERVER"); server != "" {
		return server
	}
	return "127.0.0.1:50051"
}

func serve(ctx context.Context, server string, work func(context.Context, *oncelog.Client) error) error {
	client, err := oncelog.Dial(server)
	if err != nil {
		return err
	}
	defer client.Close()
	return work(ctx, client)
}

func statsCommand(*flag.FlagSet) func(context.Context, *oncelog.Client) error {
	return func(ctx context.Context, client *oncelog.Client) error {
		stats, err := client.Stats(ctx)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(statsOf(stats))
	}
}

// printError prints the error, then a line for each violated field and one for the reason.
func printError(err error, server string) {
	out := bufio.NewWriter(os.Stderr)
	defer out.Flush()
	fmt.Fprintf(out, "error: %s\n", describe(err))
	violations, info := oncelog.Details(err)
	for _, violation := range violations {
		fmt.Fprintf(out, "  %s: %s\n", violation.Field, violation.Description)
	}
	if info != nil {
		fmt.Fprintf(out, "  %s", info.Reason)
		for _, key := range slices.Sorted(maps.Keys(info.Metadata)) {
			fmt.Fprintf(out, " %s=%s", key, info.Metadata[key])
		}
		fmt.Fprintln(out)
	}
	if status.Code(err) == codes.DeadlineExceeded {
		fmt.Fprintf(out, "  no answer from %s\n", server)
	}
}

// describe formats a gRPC error as its code and message.
func describe(err error) string {
	call, isCall := err.(interface{ GRPCStatus() *status.Status })
	if !isCall {
		return err.Error()
	}
	name := code.Code(call.GRPCStatus().Code()).String()
	return strings.TrimSuffix(name+": "+call.GRPCStatus().Message(), ": ")
}
