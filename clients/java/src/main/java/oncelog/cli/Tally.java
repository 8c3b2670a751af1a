package oncelog.cli;

import java.util.List;
import oncelog.v1.Aggregator.EventOutcome;
import oncelog.v1.Aggregator.PublishResponse;

/** The outcomes so far. */
final class Tally {
    private long sent;
    private long stored;
    private long duplicates;
    private long conflicts;
    private long rejected;
    private long breaks;

    /** The printed summary. Duplicates include conflicts. */
    record Summary(
            long sent, long stored, long duplicates, long conflicts, long rejected, long breaks, long resent) {}

    synchronized Summary summary(long resent) {
        return new Summary(sent, stored, duplicates, conflicts, rejected, breaks, resent);
    }

    /** Counts the outcomes of a request. Returns how many events have one so far. */
    synchronized long count(Batch batch, List<EventOutcome> outcomes) {
        for (int i = 0; i < outcomes.size(); i++) {
            EventOutcome outcome = outcomes.get(i);
            sent++;
            switch (outcome.getOutcome()) {
                case OUTCOME_STORED -> stored++;
                case OUTCOME_DUPLICATE -> duplicates++;
                case OUTCOME_CONFLICT -> {
                    duplicates++;
                    conflicts++;
                }
                case OUTCOME_REJECTED -> reject(batch.lines().get(i), outcome.getReason());
                case OUTCOME_UNSPECIFIED, UNRECOGNIZED ->
                    reject(batch.lines().get(i), "unknown outcome " + outcome.getOutcomeValue());
            }
        }
        return sent;
    }

    synchronized void count(PublishResponse totals) {
        sent += totals.getReceived();
        stored = totals.getUniqueProcessed();
        duplicates = totals.getDuplicateDropped();
        conflicts = totals.getConflicts();
    }

    /** Counts a line without an event. */
    synchronized void countUnread(long line, String reason) {
        sent++;
        reject(line, reason);
    }

    synchronized void countBreak() {
        breaks++;
    }

    synchronized boolean hasRejected() {
        return rejected > 0;
    }

    private void reject(long line, String reason) {
        rejected++;
        Output.note("line " + line + ": rejected: " + reason);
    }
}
