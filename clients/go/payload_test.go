package oncelog

import (
	"math"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"oncelog.example/oncelog/oncelogv1"
)

func structEvent(fields map[string]*structpb.Value) *oncelogv1.Event {
	return &oncelogv1.Event{Payload: &oncelogv1.Event_Json{Json: &structpb.Struct{Fields: fields}}}
}

func TestPayloadsAreGivenBackExactly(t *testing.T) {
	number := structpb.NewNumberValue
	list := func(values ...*structpb.Value) *structpb.Value {
		return structpb.NewListValue(&structpb.ListValue{Values: values})
	}
	for want, event := range map[string]*oncelogv1.Event{
		`{"a":[null,true,"<é>\n"],"big":1152921504606846976,"e":1e+300,"f":0.1,"n":12,"z":-0.0}`: structEvent(map[string]*structpb.Value{
			"n": number(12), "f": number(0.1), "e": number(1e300), "z": number(math.Copysign(0, -1)), "big": number(1 << 60),
			"a": list(structpb.NewNullValue(), structpb.NewBoolValue(true), structpb.NewStringValue("<é>\n")),
		}),
		`{"":["NaN","Infinity","-Infinity",null]}`: structEvent(map[string]*structpb.Value{
			"": list(number(math.NaN()), number(math.Inf(1)), number(math.Inf(-1)), &structpb.Value{}),
		}),
		`{}`:                               structEvent(nil),
		`{"a":1.50,"id":9007199254740993}`: {Payload: JSONPayload(`{"a":1.50,"id":9007199254740993}`)},
		``:                                 {Payload: &oncelogv1.Event_Data{Data: []byte("x")}},
	} {
		if got := string(PayloadJSON(event)); got != want {
			t.Errorf("PayloadJSON is %s, want %s", got, want)
		}
	}
}
