package oncelog.client;

import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;
import oncelog.v1.Aggregator.Event;
import oncelog.v1.Aggregator.EventOutcome;
import oncelog.v1.Aggregator.StreamingPublishRequest;
import oncelog.v1.Aggregator.StreamingPublishResponse;
import oncelog.v1.AggregatorServiceGrpc;

/**
 * Publishes events over one StreamingPublish stream until they are durable.
 *
 * <p>When the stream breaks, the publisher reconnects, waiting longer each time, and resends the unacknowledged
 * requests, in order and before anything new. The server drops events it has already stored, so nothing is stored
 * twice; but an event whose ack was lost then has OUTCOME_DUPLICATE.
 *
 * <p>It may be used by several threads. After the first error it stays failed.
 */
public final class Publisher implements AutoCloseable {
    /** How many requests may be unacked. */
    private static final int REQUESTS_IN_FLIGHT_MAX = 64;
    /** How many bytes they may have together, encoded; a larger request travels alone. */
    private static final int BYTES_IN_FLIGHT_MAX = 16 * 1024 * 1024;
    /** How long the server may acknowledge nothing before the stream counts as broken. */
    private static final Duration ACK_TIMEOUT = Duration.ofSeconds(30);

    private final Client client;
    private final Retry retry;
    private final Thread worker = new Thread(this::run, "oncelog-publisher");
    /** Senders wait for room in order of arrival. */
    private final ReentrantLock turn = new ReentrantLock(true);

    // Guarded by this:
    /** Unacked, and on the stream, in order. */
    private final Deque<Pending> sent = new ArrayDeque<>();
    /** Unacked, after those, and not yet on the stream. */
    private final Deque<Pending> queued = new ArrayDeque<>();

    private long bytesInFlight;
    private long eventsResent;
    /** Of the last ack, or of the start of waiting for the next. */
    private long lastProgress;

    private boolean finishing;
    private boolean ended;
    private RuntimeException failure;

    Publisher(Client client, Consumer<StatusRuntimeException> onBreak) {
        this.client = client;
        retry = new Retry(client.server(), onBreak);
        worker.setDaemon(true);
        worker.start();
    }

    /**
     * Sends {@code events} as one request, waiting while too many events are unacknowledged.
     *
     * <p>The ack has one outcome per event, in the order of the events; every event not rejected is durable. Waiting
     * for it is optional: the request is resent until acked anyway.
     */
    public CompletableFuture<List<EventOutcome>> send(List<Event> events) throws InterruptedException {
        var pending = new Pending(events);
        turn.lockInterruptibly();
        try {
            enqueue(pending);
        } finally {
            turn.unlock();
        }
        return pending.ack;
    }

    /** Sends nothing more, and waits until everything sent is acked. Throws the publisher's error. */
    public synchronized void finish() throws InterruptedException {
        if (!finishing) {
            finishing = true;
            lastProgress = System.nanoTime();
            notifyAll();
        }
        while (!ended) {
            wait();
        }
        if (failure != null) {
            throw failure;
        }
    }

    /** Ends at once. Unacked events may or may not be stored; call {@link #finish()} first to be sure. */
    @Override
    public void close() {
        worker.interrupt();
    }

    /** How many events were sent again because a stream broke. */
    public synchronized long eventsResent() {
        return eventsResent;
    }

    private synchronized void enqueue(Pending pending) throws InterruptedException {
        while (!finishing && !hasRoomFor(pending)) {
            wait();
        }
        if (failure != null) {
            throw failure;
        }
        if (finishing) {
            throw new IllegalStateException("the publisher is finished");
        }
        if (!isWaiting()) {
            lastProgress = System.nanoTime();
        }
        queued.add(pending);
        bytesInFlight += pending.bytes;
        notifyAll();
    }

    private boolean hasRoomFor(Pending pending) {
        int requests = sent.size() + queued.size();
        return requests == 0
                || requests < REQUESTS_IN_FLIGHT_MAX && bytesInFlight + pending.bytes <= BYTES_IN_FLIGHT_MAX;
    }

    /** Whether a request is unacked. */
    private synchronized boolean isWaiting() {
        return !sent.isEmpty() || !queued.isEmpty();
    }

    /** Publishes until finished, or until the first error, which all later calls throw. */
    private void run() {
        RuntimeException error = null;
        try {
            publish();
        } catch (InterruptedException closed) {
            error = new CancellationException("the publisher is closed");
        } catch (RuntimeException failed) {
            error = failed;
        }
        List<Pending> unacked;
        synchronized (this) {
            finishing = true;
            ended = true;
            failure = error;
            unacked = new ArrayList<>(queued);
            queued.clear();
            notifyAll();
        }
        for (Pending pending : unacked) {
            pending.ack.completeExceptionally(error);
        }
    }

    private void publish() throws InterruptedException {
        while (awaitRequest()) {
            StatusRuntimeException end = stream();
            // Nothing was waiting for this stream; the next request opens another.
            if (isWaiting()) {
                retry.await(end);
            }
        }
    }

    /** Waits for something to send. Returns false if nothing more will be sent. */
    private synchronized boolean awaitRequest() throws InterruptedException {
        while (queued.isEmpty() && !finishing) {
            wait();
        }
        return !queued.isEmpty();
    }

    /** Sends the unacked requests on a new stream, and new ones as they come. Returns how the stream ended. */
    private StatusRuntimeException stream() throws InterruptedException {
        // Its own connection, so that no attempt reuses a dead one.
        ManagedChannel channel = client.connect();
        var acks = new Acks();
        synchronized (this) {
            lastProgress = System.nanoTime();
        }
        try {
            var requests = AggregatorServiceGrpc.newStub(channel).streamingPublish(acks);
            boolean halfClosed = false;
            while (acks.awaitNext(halfClosed)) {
                Pending next = nextToSend();
                if (next != null) {
                    requests.onNext(next.request);
                } else {
                    requests.onCompleted();
                    halfClosed = true;
                }
            }
            return acks.end();
        } finally {
            acks.abandon();
            channel.shutdownNow();
        }
    }

    /** Moves the next request onto the stream; null after the last. */
    private synchronized Pending nextToSend() {
        Pending next = queued.poll();
        if (next != null) {
            sent.add(next);
            if (next.wasSent) {
                eventsResent += next.request.getEventsCount();
            }
            next.wasSent = true;
        }
        return next;
    }

    /** An unacked request. */
    private static final class Pending {
        final StreamingPublishRequest request;
        final int bytes;
        final CompletableFuture<List<EventOutcome>> ack = new CompletableFuture<>();
        /** On some stream. */
        boolean wasSent;

        Pending(List<Event> events) {
            request = StreamingPublishRequest.newBuilder().addAllEvents(events).build();
            bytes = request.getSerializedSize();
        }
    }

    /** The acks of one stream, and its end. */
    private final class Acks
            implements ClientResponseObserver<StreamingPublishRequest, StreamingPublishResponse> {
        private ClientCallStreamObserver<StreamingPublishRequest> requests;
        private long acked;
        private RuntimeException end;

        @Override
        public void beforeStart(ClientCallStreamObserver<StreamingPublishRequest> requests) {
            this.requests = requests;
            requests.setOnReadyHandler(() -> {
                synchronized (Publisher.this) {
                    Publisher.this.notifyAll();
                }
            });
        }

        @Override
        public void onNext(StreamingPublishResponse response) {
            Pending oldest;
            synchronized (Publisher.this) {
                if (end != null) {
                    return;
                }
                acked++;
                oldest = sent.peek();
                String violation = violation(response, oldest);
                if (violation != null) {
                    endWith(new ContractException(violation));
                    return;
                }
                sent.remove();
                bytesInFlight -= oldest.bytes;
                lastProgress = System.nanoTime();
                retry.progress();
                Publisher.this.notifyAll();
            }
            // Without the lock: code that depends on the ack may run here.
            oldest.ack.complete(response.getOutcomesList());
        }

        @Override
        public void onError(Throwable error) {
            Status status = Status.fromThrowable(error);
            endWith(status.asRuntimeException(Status.trailersFromThrowable(error)));
        }

        @Override
        public void onCompleted() {
            endWith(Status.UNAVAILABLE
                    .withDescription("the server ended the stream")
                    .asRuntimeException());
        }

        /** Waits for something to do on the stream. Returns false if it has ended. */
        boolean awaitNext(boolean halfClosed) throws InterruptedException {
            synchronized (Publisher.this) {
                while (end == null && !canSend() && !(canHalfClose() && !halfClosed)) {
                    if (!finishing && !isWaiting()) {
                        Publisher.this.wait();
                        continue;
                    }
                    long left = ACK_TIMEOUT.toNanos() - (System.nanoTime() - lastProgress);
                    if (left <= 0) {
                        String description = "no ack for " + ACK_TIMEOUT.toSeconds() + " s";
                        endWith(Status.DEADLINE_EXCEEDED
                                .withDescription(description)
                                .asRuntimeException());
                    } else {
                        TimeUnit.NANOSECONDS.timedWait(Publisher.this, left);
                    }
                }
                return end == null;
            }
        }

        /** Only once there is a connection: until then it has not been sent. */
        private boolean canSend() {
            return !queued.isEmpty() && requests.isReady();
        }

        private boolean canHalfClose() {
            return finishing && queued.isEmpty();
        }

        /** How the stream ended. */
        StatusRuntimeException end() {
            synchronized (Publisher.this) {
                if (end instanceof StatusRuntimeException status) {
                    return status;
                }
                throw end;
            }
        }

        /** Takes no more acks, and takes unacked requests off the stream. */
        void abandon() {
            synchronized (Publisher.this) {
                endWith(new CancellationException());
                while (!sent.isEmpty()) {
                    queued.addFirst(sent.removeLast());
                }
            }
        }

        private void endWith(RuntimeException reason) {
            synchronized (Publisher.this) {
                if (end == null) {
                    end = reason;
                    Publisher.this.notifyAll();
                }
            }
        }

        /** The fault in the response for {@code oldest}; null if there is none. */
        private String violation(StreamingPublishResponse response, Pending oldest) {
            if (response.getAcknowledgedRequests() != acked) {
                return "response %d of a stream acknowledges %d requests"
                        .formatted(acked, response.getAcknowledgedRequests());
            }
            if (oldest == null) {
                return "response %d of a stream answers no request".formatted(acked);
            }
            if (response.getOutcomesCount() != oldest.request.getEventsCount()) {
                return "%d outcomes for a request of %d events"
                        .formatted(response.getOutcomesCount(), oldest.request.getEventsCount());
            }
            return null;
        }
    }
}
