package oncelog.client;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** Decides whether to reopen a broken stream, and waits before that. */
final class Retry {
    /** The longest wait after the first failure, and after any. */
    private static final Duration DELAY_INITIAL = Duration.ofMillis(50);

    private static final Duration DELAY_MAX = Duration.ofSeconds(5);
    /** How long to keep retrying after the first break without progress. */
    private static final Duration GIVE_UP_AFTER = Duration.ofSeconds(60);

    private final String server;
    private final Consumer<StatusRuntimeException> onBreak;
    private long delayNanos;
    private long brokenSince;

    /** {@code onBreak} is called for every failure that is not final. */
    Retry(String server, Consumer<StatusRuntimeException> onBreak) {
        this.server = server;
        this.onBreak = onBreak;
    }

    /** Forgets the failures so far. */
    void progress() {
        delayNanos = 0;
    }

    /**
     * Waits before the next attempt.
     *
     * @throws StatusRuntimeException if there is none
     */
    void await(StatusRuntimeException failure) throws InterruptedException {
        if (!isTransient(failure.getStatus().getCode())) {
            throw failure;
        }
        onBreak.accept(failure);
        if (delayNanos == 0) {
            delayNanos = DELAY_INITIAL.toNanos();
            brokenSince = System.nanoTime();
        } else {
            delayNanos = Math.min(2 * delayNanos, DELAY_MAX.toNanos());
        }
        long left = GIVE_UP_AFTER.toNanos() - (System.nanoTime() - brokenSince);
        if (left <= 0) {
            String description = "gave up on %s after %d s without progress: %s"
                    .formatted(server, GIVE_UP_AFTER.toSeconds(), ErrorDetails.message(failure));
            // The description already has the cause.
            Status status = failure.getStatus().withCause(null).withDescription(description);
            throw status.asRuntimeException(failure.getTrailers());
        }
        // At least half of it, so that clients cut off together do not all come back at once.
        long jittered = ThreadLocalRandom.current().nextLong(delayNanos / 2, delayNanos + 1);
        TimeUnit.NANOSECONDS.sleep(Math.min(jittered, left));
    }

    /** Whether a call that failed with {@code code} may succeed when retried. */
    private static boolean isTransient(Status.Code code) {
        return switch (code) {
            // The codes of a broken connection, a server that starts or stops, and a full disk that may heal.
            case UNAVAILABLE, CANCELLED, UNKNOWN, INTERNAL, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, ABORTED -> true;
            case INVALID_ARGUMENT,
                    NOT_FOUND,
                    ALREADY_EXISTS,
                    PERMISSION_DENIED,
                    FAILED_PRECONDITION,
                    OUT_OF_RANGE,
                    UNIMPLEMENTED,
                    DATA_LOSS,
                    UNAUTHENTICATED -> false;
            // Never the code of a failed call.
            case OK -> false;
        };
    }
}
