package oncelog.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ListValue;
import com.google.protobuf.NullValue;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import oncelog.client.Payloads;
import oncelog.v1.Aggregator.Event;
import oncelog.v1.Aggregator.StoredEvent;
import org.junit.jupiter.api.Test;

class JsonLineTest {
    private static final String EXACT = "{\"a\":[1.50,1e400],\"id\":9007199254740993}";
    private static final String LINE = "{\"topic\":\"t\",\"event_id\":\"1\",\"timestamp\":\"2026-01-01T00:00:00Z\","
            + "\"source\":\"<s>\",\"payload\":" + EXACT + ",\"attributes\":{\"k\":\"v\"}";

    private static Value number(double number) {
        return Value.newBuilder().setNumberValue(number).build();
    }

    private static Value list(Value... values) {
        return Value.newBuilder()
                .setListValue(ListValue.newBuilder().addAllValues(List.of(values)))
                .build();
    }

    private static Optional<String> json(Map<String, Value> fields) {
        var struct = Struct.newBuilder().putAllFields(fields);
        return Payloads.json(Event.newBuilder().setJson(struct).build());
    }

    @Test
    void aStructIsPrintedExactly() {
        var none = Value.newBuilder().setNullValue(NullValue.NULL_VALUE).build();
        var text = Value.newBuilder().setStringValue("é\n").build();
        assertEquals(
                Optional.of("{\"a\":[null,\"é\\n\"],\"big\":1152921504606846976,\"f\":0.1,\"n\":12,\"z\":-0.0}"),
                json(Map.of(
                        "n", number(12), "f", number(0.1), "z", number(-0.0), "big", number(0x1p60), "a", list(none, text))));
    }

    @Test
    void whatJsonDoesNotHaveIsText() {
        var values = list(
                number(Double.NaN),
                number(Double.POSITIVE_INFINITY),
                number(Double.NEGATIVE_INFINITY),
                Value.getDefaultInstance());
        assertEquals(Optional.of("{\"l\":[\"NaN\",\"Infinity\",\"-Infinity\",null]}"), json(Map.of("l", values)));
    }

    @Test
    void linesComeBack() throws Exception {
        for (String payload : List.of(EXACT, "null,\"data\":\"AAH/\"", "null")) {
            String line = LINE.replace(EXACT, payload);
            Event event = JsonLine.parse(line + "}");
            String listed = JsonLine.format(
                    StoredEvent.newBuilder().setEvent(event).setSequence(Long.MIN_VALUE + 1).build());
            assertTrue(listed.startsWith(line + ",\"sequence\":9223372036854775809,"), listed);
            assertEquals(event, JsonLine.parse(listed));
        }
    }

    @Test
    void whatIsNoEventIsTold() {
        Map.of(
                        "[]", "an event object",
                        "{\"topik\":\"t\"}", "topik: not a field",
                        "{\"topic\":7}", "topic: a string",
                        "{\"topic\":\"t\"}", "payload: missing",
                        "{\"topic\":\"a\",\"\\u0074opic\":\"b\"}", "topic: given twice",
                        "{\"topic\":\"a\"", "not JSON",
                        LINE + "} {}", "not JSON",
                        LINE + ",\"data\":\"AA==\"}", "data: given beside")
                .forEach((line, says) -> {
                    var error = assertThrows(JsonLine.NoEvent.class, () -> JsonLine.parse(line), line);
                    assertTrue(error.getMessage().startsWith(says), error.getMessage());
                });
    }
}
