package oncelog.cli;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import com.google.gson.Strictness;
import com.google.gson.reflect.TypeToken;
import com.google.protobuf.ByteString;
import com.google.protobuf.Timestamp;
import com.google.protobuf.util.Timestamps;
import java.text.ParseException;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import oncelog.client.Payloads;
import oncelog.v1.Aggregator.Event;
import oncelog.v1.Aggregator.GetStatsResponse;
import oncelog.v1.Aggregator.StoredEvent;

/** Events and counters as lines of JSON, in the form of HTTP and of {@code oncelog}. */
final class JsonLine {
    private static final Gson GSON = new GsonBuilder()
            .setStrictness(Strictness.STRICT)
            .disableHtmlEscaping()
            .serializeNulls()
            .create();

    private JsonLine() {}

    /** A line that holds no event. */
    static final class NoEvent extends Exception {
        private static final long serialVersionUID = 1L;

        NoEvent(String message) {
            super(message);
        }
    }

    /** The event of a line. The server checks limits. */
    static Event parse(String line) throws NoEvent {
        try {
            if (!GSON.fromJson(line, JsonElement.class).isJsonObject()) {
                throw new NoEvent("an event object is expected");
            }
            return event(members(line));
        } catch (JsonParseException error) {
            Throwable cause = error.getCause() == null ? error : error.getCause();
            throw new NoEvent("not JSON: " + String.valueOf(cause.getMessage()).lines().findFirst().orElse(""));
        } catch (IllegalArgumentException error) {
            throw new NoEvent("data: not base64");
        }
    }

    private static Event event(Map<String, String> members) throws NoEvent {
        var event = Event.newBuilder();
        String payload = null;
        String data = null;
        for (Map.Entry<String, String> member : members.entrySet()) {
            String name = member.getKey();
            String text = member.getValue();
            switch (name) {
                case "topic" -> event.setTopic(string(name, text));
                case "event_id" -> event.setEventId(string(name, text));
                case "source" -> event.setSource(string(name, text));
                case "timestamp" -> event.setTimestamp(timestamp(string(name, text)));
                case "payload" -> payload = text;
                case "data" -> data = string(name, text);
                case "attributes" -> event.putAllAttributes(GSON.fromJson(text, new TypeToken<Map<String, String>>() {}));
                case "sequence", "received_at", "cursor" -> {
                    // Members that the server adds to listings.
                }
                default -> throw new NoEvent(name + ": not a field of an event");
            }
        }
        if (payload != null && !payload.equals("null")) {
            if (data != null) {
                throw new NoEvent("data: given beside payload; give one of them");
            }
            event.setJsonText(payload);
        } else if (data != null) {
            event.setData(ByteString.copyFrom(Base64.getDecoder().decode(data)));
        } else if (payload == null) {
            throw new NoEvent("payload: missing; give an object, or null for an event without one");
        }
        return event.build();
    }

    /** The members of the object on a line of JSON, as text, which keeps a payload's digits. */
    private static Map<String, String> members(String line) throws NoEvent {
        Map<String, String> members = new LinkedHashMap<>();
        String name = null;
        int depth = 0;
        int start = 0;
        for (int at = 0; at < line.length(); at++) {
            switch (line.charAt(at)) {
                case '"' -> at = endOfString(line, at);
                case '{', '[' -> {
                    depth++;
                    start = depth == 1 ? at + 1 : start;
                }
                case ':' -> {
                    if (depth == 1) {
                        name = GSON.fromJson(line.substring(start, at), String.class);
                        start = at + 1;
                    }
                }
                case '}', ']', ',' -> {
                    boolean isEnd = depth == 1;
                    depth -= line.charAt(at) == ',' ? 0 : 1;
                    if (isEnd && name != null) {
                        if (members.put(name, line.substring(start, at).strip()) != null) {
                            throw new NoEvent(name + ": given twice");
                        }
                        name = null;
                        start = at + 1;
                    }
                }
                default -> {}
            }
        }
        return members;
    }

    /** The end of the string that starts at {@code at}. */
    private static int endOfString(String line, int at) {
        int end = at + 1;
        while (line.charAt(end) != '"') {
            end += line.charAt(end) == '\\' ? 2 : 1;
        }
        return end;
    }

    private static String string(String name, String text) throws NoEvent {
        JsonElement value = GSON.fromJson(text, JsonElement.class);
        if (value instanceof JsonPrimitive primitive && primitive.isString()) {
            return primitive.getAsString();
        }
        throw new NoEvent(name + ": a string is expected");
    }

    private static Timestamp timestamp(String text) throws NoEvent {
        try {
            return Timestamps.parse(text);
        } catch (ParseException error) {
            throw new NoEvent("timestamp: " + error.getMessage());
        }
    }

    /** A stored event as a listed line, without a cursor. */
    static String format(StoredEvent stored) {
        Event event = stored.getEvent();
        var line = new StringBuilder();
        line.append("{\"topic\":").append(GSON.toJson(event.getTopic()));
        line.append(",\"event_id\":").append(GSON.toJson(event.getEventId()));
        line.append(",\"timestamp\":").append(GSON.toJson(Timestamps.toString(event.getTimestamp())));
        line.append(",\"source\":").append(GSON.toJson(event.getSource()));
        line.append(",\"payload\":").append(Payloads.json(event).orElse("null"));
        if (event.hasData()) {
            String data = Base64.getEncoder().encodeToString(event.getData().toByteArray());
            line.append(",\"data\":").append(GSON.toJson(data));
        }
        line.append(",\"attributes\":").append(GSON.toJson(new TreeMap<>(event.getAttributesMap())));
        line.append(",\"sequence\":").append(Long.toUnsignedString(stored.getSequence()));
        line.append(",\"received_at\":").append(GSON.toJson(Timestamps.toString(stored.getReceivedAt())));
        return line.append('}').toString();
    }

    /** The counters in the form of {@code GET /stats}. */
    static Map<String, Object> stats(GetStatsResponse stats) {
        List<Object> topics = new ArrayList<>();
        List<Object> byTopic = new ArrayList<>();
        stats.getTopicsList().forEach(topic -> {
            topics.add(topic.getTopic());
            Map<String, Object> counters = new LinkedHashMap<>();
            counters.put("topic", topic.getTopic());
            counters.put("unique_processed", topic.getUniqueProcessed());
            counters.put("duplicate_dropped", topic.getDuplicateDropped());
            counters.put("last_received_at", Timestamps.toString(topic.getLastReceivedAt()));
            byTopic.add(counters);
        });
        Map<String, Object> all = new LinkedHashMap<>();
        all.put("received", stats.getReceived());
        all.put("unique_processed", stats.getUniqueProcessed());
        all.put("duplicate_dropped", stats.getDuplicateDropped());
        all.put("conflicts", stats.getConflicts());
        all.put("rejected", stats.getRejected());
        all.put("topics", topics);
        all.put("topic_count", stats.getTopicCount());
        all.put("topic_stats", byTopic);
        all.put("uptime_seconds", stats.getUptimeSeconds());
        all.put("durable_tail", stats.getDurableTail());
        all.put("storage_bytes", stats.getStorageBytes());
        all.put("server_version", stats.getServerVersion());
        return all;
    }
}
