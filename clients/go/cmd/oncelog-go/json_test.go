package main

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"oncelog.example/oncelog/oncelogv1"
)

const exact = `{"topic":"t","event_id":"1","timestamp":"2026-01-01T00:00:00.5Z","source":"<s>",` +
	`"payload":{"a":[1.50,1e400],"id":9007199254740993},"attributes":{}`

func TestLinesComeBack(t *testing.T) {
	for _, text := range []string{
		exact + "}",
		strings.Replace(exact, `{"a":[1.50,1e400],"id":9007199254740993}`, `null,"data":"AAH/"`, 1) + "}",
		strings.Replace(exact, `{"a":[1.50,1e400],"id":9007199254740993}`, `null`, 1) + "}",
	} {
		event, err := parseEvent([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		listed, err := formatEvent(&oncelogv1.StoredEvent{Event: event, Sequence: 1<<63 + 1})
		if err != nil {
			t.Fatal(err)
		}
		begin := strings.TrimSuffix(text, "}") + `,"sequence":9223372036854775809,`
		if !bytes.HasPrefix(listed, []byte(begin)) {
			t.Errorf("listed %s, want it to begin with %s", listed, begin)
		}
		again, err := parseEvent(listed)
		if err != nil || !proto.Equal(again, event) {
			t.Errorf("%s is read as %v, %v; want %v", listed, again, err, event)
		}
	}
}

func TestALineWithoutAnEventIsReported(t *testing.T) {
	for text, says := range map[string]string{
		"[]":                      "cannot unmarshal array",
		`{"topik":"t"}`:           "topik",
		exact + "} {}":            "more than one value",
		exact + `,"data":"AA=="}`: "data: given beside",
		`{"topic":"t","event_id":"1","timestamp":"2026-01-01T00:00:00Z"}`: "payload: missing",
		"{\"topic\":\"\xff\"}": "not UTF-8",
	} {
		if _, err := parseEvent([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s is reported as %v, want %q", text, err, says)
		}
	}
}
