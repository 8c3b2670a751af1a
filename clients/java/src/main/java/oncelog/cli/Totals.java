package oncelog.cli;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import oncelog.client.Client;
import oncelog.v1.Aggregator.PublishRequest;
import oncelog.v1.Aggregator.PublishResponse;
import oncelog.v1.AggregatorServiceGrpc;

/** The call Publish: one response for all events. */
final class Totals implements ClientResponseObserver<PublishRequest, PublishResponse> {
    private final CompletableFuture<PublishResponse> answer = new CompletableFuture<>();
    private ClientCallStreamObserver<PublishRequest> requests;

    private Totals() {}

    /** Publishes all events, as fast as the network takes them. */
    static PublishResponse publish(Client client, Batch.Source source) throws Exception {
        var channel = client.connect();
        try {
            var call = new Totals();
            AggregatorServiceGrpc.newStub(channel).publish(call);
            source.forEach(batch -> {
                if (call.awaitReady()) {
                    call.requests.onNext(PublishRequest.newBuilder()
                            .addAllEvents(batch.events())
                            .build());
                }
            });
            if (!call.answer.isDone()) {
                call.requests.onCompleted();
            }
            return call.answer.get();
        } catch (ExecutionException failed) {
            throw failed.getCause() instanceof StatusRuntimeException status ? status : failed;
        } finally {
            channel.shutdownNow();
        }
    }

    /** Waits until something can be sent. Returns false if the call already has its response. */
    private synchronized boolean awaitReady() throws InterruptedException {
        while (!answer.isDone() && !requests.isReady()) {
            wait();
        }
        return !answer.isDone();
    }

    private synchronized void wake() {
        notifyAll();
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<PublishRequest> requests) {
        this.requests = requests;
        requests.setOnReadyHandler(this::wake);
    }

    @Override
    public void onNext(PublishResponse totals) {
        answer.complete(totals);
        wake();
    }

    @Override
    public void onError(Throwable error) {
        Status status = Status.fromThrowable(error);
        answer.completeExceptionally(status.asRuntimeException(Status.trailersFromThrowable(error)));
        wake();
    }

    @Override
    public void onCompleted() {}
}
