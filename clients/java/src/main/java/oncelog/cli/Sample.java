package oncelog.cli;

import com.google.protobuf.Struct;
import com.google.protobuf.Timestamp;
import com.google.protobuf.Value;
import java.time.Instant;
import java.util.ArrayList;
import java.util.concurrent.TimeUnit;
import oncelog.v1.Aggregator.Event;

/**
 * The first events of the scenario.
 *
 * @param rate the most events per second; 0 for no limit
 */
record Sample(int events, int batchSize, int rate) implements Batch.Source {
    private static final int TOPICS = 10;
    private static final long FIRST_SECOND = Instant.parse("2026-01-01T00:00:00Z").getEpochSecond();

    @Override
    public void forEach(Batch.Sink sink) throws Exception {
        for (int first = 0; first < events; first += batchSize) {
            if (rate > 0 && first > 0) {
                // No catching up after a pause, so that there is always a middle in which to kill the server.
                TimeUnit.NANOSECONDS.sleep(TimeUnit.SECONDS.toNanos(batchSize) / rate);
            }
            var batch = new Batch(new ArrayList<>(), new ArrayList<>());
            for (int position = first; position < Math.min(first + batchSize, events); position++) {
                batch.lines().add(position + 1L);
                batch.events().add(event(numberAt(position)));
            }
            sink.take(batch);
        }
    }

    /** The number of the event at {@code position}: every fifth is a resend. */
    private static int numberAt(int position) {
        return position % 5 == 4 ? position / 5 * 2 + 2 : position / 5 * 4 + position % 5;
    }

    /** The event with this number, always the same. */
    private static Event event(int number) {
        var payload = Struct.newBuilder()
                .putFields("number", Value.newBuilder().setNumberValue(number).build());
        return Event.newBuilder()
                .setTopic("scenario-" + number % TOPICS)
                .setEventId("event-" + number)
                .setTimestamp(Timestamp.newBuilder().setSeconds(FIRST_SECOND + number))
                .setSource("clients/java")
                .setJson(payload)
                .putAttributes("region", "eu")
                .build();
    }
}
