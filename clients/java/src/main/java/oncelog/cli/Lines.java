package oncelog.cli;

import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import oncelog.v1.Aggregator.Event;

/**
 * Events from lines of JSON. A batch is passed on when it is full, and before waiting for more input.
 */
final class Lines implements Batch.Source {
    private static final int LINE_BYTES_MAX = 32 * 1024 * 1024;
    /** A batch is passed on before its events exceed this size, encoded. */
    private static final int BATCH_BYTES_MAX = 1024 * 1024;

    private static final int BUFFER_BYTES = 256 * 1024;

    private final InputStream input;
    private final int batchSize;
    private final Tally tally;

    private final ByteArrayOutputStream line = new ByteArrayOutputStream();
    private Batch batch = new Batch(new ArrayList<>(), new ArrayList<>());
    private int batchBytes;

    /** Reads {@code input}; lines without an event count as rejected. */
    Lines(InputStream input, int batchSize, Tally tally) {
        this.input = new BufferedInputStream(input, BUFFER_BYTES);
        this.batchSize = batchSize;
        this.tally = tally;
    }

    @Override
    public void forEach(Batch.Sink sink) throws Exception {
        for (long number = 1; ; number++) {
            if (input.available() == 0) {
                passOn(sink);
            }
            if (!readLine()) {
                passOn(sink);
                return;
            }
            try {
                Event event = parse();
                if (event != null) {
                    add(number, event, sink);
                }
            } catch (CharacterCodingException error) {
                tally.countUnread(number, "not UTF-8");
            } catch (JsonLine.NoEvent | TooLong error) {
                tally.countUnread(number, error.getMessage());
            }
        }
    }

    private void add(long number, Event event, Batch.Sink sink) throws Exception {
        if (batchBytes + event.getSerializedSize() > BATCH_BYTES_MAX) {
            passOn(sink);
        }
        batch.lines().add(number);
        batch.events().add(event);
        batchBytes += event.getSerializedSize();
        if (batch.events().size() >= batchSize) {
            passOn(sink);
        }
    }

    private void passOn(Batch.Sink sink) throws Exception {
        if (batch.events().isEmpty()) {
            return;
        }
        Batch full = batch;
        batch = new Batch(new ArrayList<>(), new ArrayList<>());
        batchBytes = 0;
        sink.take(full);
    }

    /** Reads the next line, or the start of one that is too long. Returns false at the end. */
    private boolean readLine() throws IOException {
        line.reset();
        int next = input.read();
        if (next < 0) {
            return false;
        }
        for (; next >= 0 && next != '\n'; next = input.read()) {
            if (line.size() <= LINE_BYTES_MAX) {
                line.write(next);
            }
        }
        return true;
    }

    /** The event of the line; null if the line is empty. */
    private Event parse() throws JsonLine.NoEvent, CharacterCodingException, TooLong {
        if (line.size() > LINE_BYTES_MAX) {
            throw new TooLong();
        }
        // Unlike String's own decoding, this refuses invalid UTF-8.
        String json = StandardCharsets.UTF_8
                .newDecoder()
                .decode(ByteBuffer.wrap(line.toByteArray()))
                .toString();
        if (json.isBlank()) {
            return null;
        }
        return JsonLine.parse(json);
    }

    private static final class TooLong extends Exception {
        private static final long serialVersionUID = 1L;

        TooLong() {
            super("longer than " + LINE_BYTES_MAX + " bytes");
        }
    }
}
