package oncelog

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"

	"oncelog.example/oncelog/oncelogv1"
)

// wholeMax bounds the whole doubles that stand for their exact value; see json_text in the contract.
const wholeMax = 1 << 64

// JSONPayload is a payload made from the text of a JSON object, whose numbers keep their digits. The server stores it in
// whichever form can hold it.
func JSONPayload(text string) *oncelogv1.Event_JsonText {
	return &oncelogv1.Event_JsonText{JsonText: text}
}

// PayloadJSON returns the JSON payload of an event, in either form, as text, with numbers as published; nil without one.
// A json.Decoder with UseNumber keeps the digits. Values outside JSON, which earlier servers stored, are "NaN",
// "Infinity", "-Infinity" or null.
func PayloadJSON(event *oncelogv1.Event) json.RawMessage {
	switch payload := event.GetPayload().(type) {
	case *oncelogv1.Event_Json:
		return appendObject(nil, payload.Json)
	case *oncelogv1.Event_JsonText:
		return json.RawMessage(payload.JsonText)
	default:
		return nil
	}
}

func appendObject(out []byte, object *structpb.Struct) []byte {
	out = append(out, '{')
	for i, name := range slices.Sorted(maps.Keys(object.GetFields())) {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(appendText(out, name), ':')
		out = appendValue(out, object.Fields[name])
	}
	return append(out, '}')
}

func appendValue(out []byte, value *structpb.Value) []byte {
	switch kind := value.GetKind().(type) {
	case *structpb.Value_NumberValue:
		return appendDouble(out, kind.NumberValue)
	case *structpb.Value_StringValue:
		return appendText(out, kind.StringValue)
	case *structpb.Value_BoolValue:
		return strconv.AppendBool(out, kind.BoolValue)
	case *structpb.Value_StructValue:
		return appendObject(out, kind.StructValue)
	case *structpb.Value_ListValue:
		out = append(out, '[')
		for i, element := range kind.ListValue.GetValues() {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendValue(out, element)
		}
		return append(out, ']')
	default:
		return append(out, "null"...)
	}
}

func appendDouble(out []byte, number float64) []byte {
	switch {
	case math.IsNaN(number):
		return append(out, `"NaN"`...)
	case math.IsInf(number, 1):
		return append(out, `"Infinity"`...)
	case math.IsInf(number, -1):
		return append(out, `"-Infinity"`...)
	case number == 0 && math.Signbit(number):
		return append(out, "-0.0"...)
	case number == math.Trunc(number) && math.Abs(number) < wholeMax:
		return strconv.AppendFloat(out, number, 'f', 0, 64)
	default:
		return strconv.AppendFloat(out, number, 'g', -1, 64)
	}
}

func appendText(out []byte, text string) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	// A string is always JSON.
	_ = encoder.Encode(text)
	return append(out, bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))...)
}
