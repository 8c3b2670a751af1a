package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"oncelog.example/oncelog/oncelogv1"
)

const (
	// The longest line.
	lineBytesMax = 32 << 20
	// A batch is passed on before its events exceed this size, encoded.
	batchBytesMax = 1 << 20
	// How much is read at a time.
	bufferBytes = 256 << 10
)

// batch is the events of one request, each with the number of its line; or one line that holds no event, and why.
type batch struct {
	lines    []int
	events   []*oncelogv1.Event
	bytes    int
	rejected string
}

// source passes on all batches, until pass fails.
type source func(ctx context.Context, pass func(batch) error) error

// lines reads one JSON object per line. A batch is passed on when it has size events or about 1 MiB, and before
// waiting for more input.
func lines(input io.Reader, size int) source {
	return func(_ context.Context, pass func(batch) error) error {
		reader := bufio.NewReaderSize(input, bufferBytes)
		var pending batch
		flush := func() error {
			if len(pending.events) == 0 {
				return nil
			}
			full := pending
			pending = batch{}
			return pass(full)
		}
		for number := 1; ; number++ {
			if reader.Buffered() == 0 {
				if err := flush(); err != nil {
					return err
				}
			}
			line, err := readLine(reader)
			if errors.Is(err, io.EOF) {
				return flush()
			}
			var event *oncelogv1.Event
			switch {
			case errors.Is(err, errTooLong):
			case err != nil:
				return fmt.Errorf("cannot read standard input: %w", err)
			case len(line) == 0:
				continue
			default:
				event, err = parseEvent(line)
			}
			bytes := proto.Size(event)
			if err != nil || pending.bytes+bytes > batchBytesMax {
				if err := flush(); err != nil {
					return err
				}
			}
			if err != nil {
				if err := pass(batch{lines: []int{number}, rejected: err.Error()}); err != nil {
					return err
				}
				continue
			}
			pending.lines = append(pending.lines, number)
			pending.events = append(pending.events, event)
			pending.bytes += bytes
			if len(pending.events) >= size {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
}

var errTooLong = fmt.Errorf("longer than %d bytes", lineBytesMax)

// readLine returns the next line, trimmed; io.EOF after the last.
func readLine(reader *bufio.Reader) ([]byte, error) {
	var line []byte
	length := 0
	for {
		part, err := reader.ReadSlice('\n')
		length += len(part)
		if length <= lineBytesMax {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && (!errors.Is(err, io.EOF) || length == 0):
			return nil, err
		case length > lineBytesMax:
			return nil, errTooLong
		default:
			return bytes.TrimSpace(line), nil
		}
	}
}
