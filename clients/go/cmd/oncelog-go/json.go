package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"oncelog.example/oncelog"
	"oncelog.example/oncelog/oncelogv1"
)

// line is an event in the JSON of HTTP and oncelog. A payload stays text, to keep its digits.
type line struct {
	Topic      string            `json:"topic"`
	EventID    string            `json:"event_id"`
	Timestamp  string            `json:"timestamp"`
	Source     string            `json:"source"`
	Payload    json.RawMessage   `json:"payload"`
	Data       *[]byte           `json:"data,omitempty"`
	Attributes map[string]string `json:"attributes"`
	Sequence   uint64            `json:"sequence"`
	ReceivedAt string            `json:"received_at"`
	Cursor     string            `json:"cursor,omitempty"`
}

// parseEvent reads the event of a line. The server checks limits.
func parseEvent(text []byte) (*oncelogv1.Event, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("not UTF-8")
	}
	var read line
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&read); err != nil {
		return nil, err
	}
	if decoder.More() {
		return nil, errors.New("more than one value on the line")
	}
	at, err := time.Parse(time.RFC3339Nano, read.Timestamp)
	if err != nil {
		return nil, fmt.Errorf("timestamp: %w", err)
	}
	event := &oncelogv1.Event{
		Topic:      read.Topic,
		EventId:    read.EventID,
		Timestamp:  timestamppb.New(at),
		Source:     read.Source,
		Attributes: read.Attributes,
	}
	switch hasPayload := read.Payload != nil && string(read.Payload) != "null"; {
	case hasPayload && read.Data != nil:
		return nil, errors.New("data: given beside payload; give one of them")
	case hasPayload:
		event.Payload = oncelog.JSONPayload(string(read.Payload))
	case read.Data != nil:
		event.Payload = &oncelogv1.Event_Data{Data: *read.Data}
	case read.Payload == nil:
		return nil, errors.New("payload: missing; give an object, or null for an event without one")
	}
	return event, nil
}

// formatEvent writes a stored event as one listed line, without a cursor.
func formatEvent(stored *oncelogv1.StoredEvent) ([]byte, error) {
	event := stored.Event
	written := line{
		Topic:      event.GetTopic(),
		EventID:    event.GetEventId(),
		Timestamp:  formatTime(event.GetTimestamp()),
		Source:     event.GetSource(),
		Payload:    oncelog.PayloadJSON(event),
		Attributes: event.GetAttributes(),
		Sequence:   stored.Sequence,
		ReceivedAt: formatTime(stored.ReceivedAt),
	}
	if data, isData := event.GetPayload().(*oncelogv1.Event_Data); isData {
		written.Data = &data.Data
		if written.Data == nil || *written.Data == nil {
			written.Data = &[]byte{}
		}
	}
	if written.Attributes == nil {
		written.Attributes = map[string]string{}
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	// Payloads are canonical; escapes for browsers would not be.
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(written); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func formatTime(at *timestamppb.Timestamp) string {
	return at.AsTime().Format(time.RFC3339Nano)
}

// stats is the counters in the form of GET /stats.
type stats struct {
	Received         uint64       `json:"received"`
	UniqueProcessed  uint64       `json:"unique_processed"`
	DuplicateDropped uint64       `json:"duplicate_dropped"`
	Conflicts        uint64       `json:"conflicts"`
	Rejected         uint64       `json:"rejected"`
	Topics           []string     `json:"topics"`
	TopicCount       uint64       `json:"topic_count"`
	TopicStats       []topicStats `json:"topic_stats"`
	UptimeSeconds    uint64       `json:"uptime_seconds"`
	DurableTail      uint64       `json:"durable_tail"`
	StorageBytes     uint64       `json:"storage_bytes"`
	ServerVersion    string       `json:"server_version"`
}

type topicStats struct {
	Topic            string `json:"topic"`
	UniqueProcessed  uint64 `json:"unique_processed"`
	DuplicateDropped uint64 `json:"duplicate_dropped"`
	LastReceivedAt   string `json:"last_received_at"`
}

func statsOf(answer *oncelogv1.GetStatsResponse) stats {
	topics, byTopic := []string{}, []topicStats{}
	for _, topic := range answer.Topics {
		topics = append(topics, topic.Topic)
		byTopic = append(byTopic, topicStats{
			Topic:            topic.Topic,
			UniqueProcessed:  topic.UniqueProcessed,
			DuplicateDropped: topic.DuplicateDropped,
			LastReceivedAt:   formatTime(topic.LastReceivedAt),
		})
	}
	return stats{
		Received:         answer.Received,
		UniqueProcessed:  answer.UniqueProcessed,
		DuplicateDropped: answer.DuplicateDropped,
		Conflicts:        answer.Conflicts,
		Rejected:         answer.Rejected,
		Topics:           topics,
		TopicCount:       answer.TopicCount,
		TopicStats:       byTopic,
		UptimeSeconds:    answer.UptimeSeconds,
		DurableTail:      answer.DurableTail,
		StorageBytes:     answer.StorageBytes,
		ServerVersion:    answer.ServerVersion,
	}
}
