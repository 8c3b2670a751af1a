package oncelog.client;

import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.time.Duration;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import oncelog.v1.Aggregator.ListEventsRequest;
import oncelog.v1.Aggregator.ListEventsResponse;
import oncelog.v1.AggregatorServiceGrpc;

/**
 * Reads a ListEvents stream to its end, resuming it when it breaks, without gap or repeat. A list that follows without a
 * limit has no end; interrupt the thread that reads it.
 *
 * <p>A response may hold no events. The one exception: a list from START_POSITION_LATEST that breaks before its first
 * response starts again at the tail of that moment.
 */
public final class EventReader implements Iterator<ListEventsResponse>, AutoCloseable {
    /** How long a list that follows may be silent before it counts as broken; the server sends something every 15 s. */
    private static final Duration SILENCE_MAX = Duration.ofSeconds(45);

    private final Client client;
    private final Retry retry;
    /** The rest of the request: the cursor and the limit move as events arrive. */
    private final ListEventsRequest.Builder request;

    private Call call;
    private ListEventsResponse next;
    private boolean ended;
    private volatile String cursor;

    EventReader(Client client, ListEventsRequest request, Consumer<StatusRuntimeException> onBreak) {
        this.client = client;
        this.request = request.toBuilder();
        retry = new Retry(client.server(), onBreak);
        cursor = request.getCursor();
    }

    /**
     * Waits for the next response.
     *
     * @throws StatusRuntimeException if the server refuses the list, or the connection keeps breaking
     */
    @Override
    public boolean hasNext() {
        try {
            while (next == null && !ended) {
                receive();
            }
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            close();
            throw Status.CANCELLED
                    .withDescription("interrupted")
                    .withCause(interrupted)
                    .asRuntimeException();
        }
        return next != null;
    }

    /** Returns the next response. Its cursor resumes after it: store it with the results of its events. */
    @Override
    public ListEventsResponse next() {
        if (!hasNext()) {
            throw new NoSuchElementException();
        }
        ListEventsResponse response = next;
        next = null;
        cursor = response.getCursor();
        return response;
    }

    /** Resumes after the last event that {@link #next()} returned; the cursor of the request before the first. */
    public String cursor() {
        return cursor;
    }

    @Override
    public void close() {
        if (call != null) {
            call.channel.shutdownNow();
            call = null;
        }
    }

    private void receive() throws InterruptedException {
        if (call == null) {
            call = new Call();
        }
        try {
            next = call.take();
        } catch (StatusRuntimeException failure) {
            close();
            retry.await(failure);
            return;
        }
        if (next == null) {
            ended = true;
        } else {
            advance();
        }
        if (ended) {
            close();
        }
    }

    private void advance() {
        retry.progress();
        request.setCursor(next.getCursor());
        if (request.getLimit() > 0) {
            request.setLimit(Math.max(0, request.getLimit() - next.getEventsCount()));
            // To the server 0 means no limit, so it must not be sent at the end.
            ended = request.getLimit() == 0;
        }
    }

    /** One stream, on its own connection, so that no attempt reuses a dead one. */
    private final class Call implements ClientResponseObserver<ListEventsRequest, ListEventsResponse> {
        final ManagedChannel channel = client.connect();
        /** One response, the number requested at a time, and the end. */
        private final BlockingQueue<Item> items = new LinkedBlockingQueue<>();

        private ClientCallStreamObserver<ListEventsRequest> stream;

        Call() {
            AggregatorServiceGrpc.newStub(channel).listEvents(request.build(), this);
        }

        /** The next response; null at the end of the list. */
        ListEventsResponse take() throws InterruptedException {
            Item item;
            if (request.getFollow()) {
                item = items.poll(SILENCE_MAX.toSeconds(), TimeUnit.SECONDS);
            } else {
                item = items.take();
            }
            if (item == null) {
                throw Status.DEADLINE_EXCEEDED
                        .withDescription("nothing from the server for " + SILENCE_MAX.toSeconds() + " s")
                        .asRuntimeException();
            }
            if (item.failure != null) {
                throw item.failure;
            }
            if (item.response != null) {
                stream.request(1);
            }
            return item.response;
        }

        @Override
        public void beforeStart(ClientCallStreamObserver<ListEventsRequest> stream) {
            this.stream = stream;
            stream.disableAutoRequestWithInitial(1);
        }

        @Override
        public void onNext(ListEventsResponse response) {
            items.add(new Item(response, null));
        }

        @Override
        public void onError(Throwable error) {
            Status status = Status.fromThrowable(error);
            items.add(new Item(null, status.asRuntimeException(Status.trailersFromThrowable(error))));
        }

        @Override
        public void onCompleted() {
            // A list that follows does not end by itself.
            var broken = Status.UNAVAILABLE.withDescription("the server ended the stream");
            items.add(new Item(null, request.getFollow() ? broken.asRuntimeException() : null));
        }
    }

    /** A response, or how the stream failed, or neither at its end. */
    private record Item(ListEventsResponse response, StatusRuntimeException failure) {}
}
