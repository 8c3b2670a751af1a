package oncelog.cli;

import java.util.List;
import oncelog.v1.Aggregator.Event;

/** The events of one request, each with the number of its line. */
record Batch(List<Long> lines, List<Event> events) {

    /** All batches, in order. */
    @FunctionalInterface
    interface Source {
        void forEach(Sink sink) throws Exception;
    }

    /** Takes a batch. */
    @FunctionalInterface
    interface Sink {
        void take(Batch batch) throws Exception;
    }
}
