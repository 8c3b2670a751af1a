package oncelog.client;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import java.math.BigDecimal;
import java.util.Comparator;
import java.util.Iterator;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import oncelog.v1.Aggregator.Event;

/** Exact JSON payloads: an object may come as a Struct, whose numbers are doubles, or as text. */
public final class Payloads {
    /** Below this, a whole double stands for its exact value; see json_text in the contract. */
    private static final double WHOLE_MAX = 0x1p64;

    private static final Gson STRINGS = new GsonBuilder().disableHtmlEscaping().create();

    private Payloads() {}

    /**
     * The JSON payload of an event, in either form, as text, with numbers as published; empty without one. Give the
     * text of an object to {@link Event.Builder#setJsonText} to publish it exactly.
     *
     * <p>Values outside JSON, which earlier servers stored, are "NaN", "Infinity", "-Infinity" or null.
     */
    public static Optional<String> json(Event event) {
        switch (event.getPayloadCase()) {
            case JSON:
                var out = new StringBuilder();
                append(event.getJson(), out);
                return Optional.of(out.toString());
            case JSON_TEXT:
                return Optional.of(event.getJsonText());
            default:
                return Optional.empty();
        }
    }

    private static void append(Struct struct, StringBuilder out) {
        out.append('{');
        Stream<Map.Entry<String, Value>> members =
                struct.getFieldsMap().entrySet().stream().sorted(Map.Entry.comparingByKey(BY_CODE_POINT));
        String separator = "";
        for (Iterator<Map.Entry<String, Value>> all = members.iterator(); all.hasNext(); separator = ",") {
            Map.Entry<String, Value> member = all.next();
            out.append(separator).append(STRINGS.toJson(member.getKey())).append(':');
            append(member.getValue(), out);
        }
        out.append('}');
    }

    private static void append(Value value, StringBuilder out) {
        switch (value.getKindCase()) {
            case NUMBER_VALUE:
                out.append(number(value.getNumberValue()));
                break;
            case STRING_VALUE:
                out.append(STRINGS.toJson(value.getStringValue()));
                break;
            case BOOL_VALUE:
                out.append(value.getBoolValue());
                break;
            case STRUCT_VALUE:
                append(value.getStructValue(), out);
                break;
            case LIST_VALUE:
                out.append('[');
                String separator = "";
                for (Value element : value.getListValue().getValuesList()) {
                    out.append(separator);
                    append(element, out);
                    separator = ",";
                }
                out.append(']');
                break;
            default:
                out.append("null");
        }
    }

    private static String number(double number) {
        if (Double.isNaN(number) || Double.isInfinite(number)) {
            return '"' + Double.toString(number) + '"';
        }
        boolean isWhole = number == Math.rint(number) && Math.abs(number) < WHOLE_MAX;
        if (isWhole && Double.compare(number, -0.0) != 0) {
            return new BigDecimal(number).toPlainString();
        }
        return Double.toString(number);
    }

    /** Strings compare by their UTF-16 units, a different order beyond the basic plane. */
    private static final Comparator<String> BY_CODE_POINT = (one, other) -> {
        int[] left = one.codePoints().toArray();
        int[] right = other.codePoints().toArray();
        return java.util.Arrays.compare(left, right);
    };
}
