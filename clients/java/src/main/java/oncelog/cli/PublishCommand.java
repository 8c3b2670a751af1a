package oncelog.cli;

import io.grpc.StatusRuntimeException;
import java.util.Optional;
import oncelog.client.Client;
import oncelog.client.ErrorDetails;
import oncelog.client.Publisher;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** Publishes the lines of standard input. */
@Command(name = "publish", description = "Publishes the events of standard input, one JSON object per line.")
final class PublishCommand extends Main.ServerCommand {
    @Option(names = "--batch", paramLabel = "N", defaultValue = "100", description = "N events per request. Default: 100.")
    private int batchSize;

    @Option(names = "--sample", paramLabel = "N", description = "The first N events of the scenario instead.")
    private Optional<Integer> sample;

    @Option(names = "--totals", description = "Uses the call Publish: one response with the totals.")
    private boolean totals;

    @Override
    int run(Client client) throws Exception {
        if (batchSize < 1 || sample.orElse(1) < 1) {
            throw new IllegalArgumentException("--batch and --sample must be at least 1");
        }
        var tally = new Tally();
        Batch.Source source = sample.isPresent()
                ? new Sample(sample.get(), batchSize, 0)
                : new Lines(System.in, batchSize, tally);
        if (totals) {
            tally.count(Totals.publish(client, source));
            Output.json(tally.summary(0));
            return tally.hasRejected() ? Main.REJECTED : 0;
        }
        return publish(client, source, tally, new Reports() {
            @Override
            public void acked(long events) {}

            @Override
            public void broken(StatusRuntimeException cause) {
                Output.note("the stream broke: " + ErrorDetails.describe(cause));
            }
        });
    }

    /** Receives progress while publishing. */
    interface Reports {
        /** How many events have been acked. */
        void acked(long events);

        void broken(StatusRuntimeException cause);
    }

    /** Publishes with an outcome for every event, and prints the summary. */
    static int publish(Client client, Batch.Source source, Tally tally, Reports reports) throws Exception {
        try (Publisher publisher = client.publisher(cause -> {
            tally.countBreak();
            reports.broken(cause);
        })) {
            // At the end of the process, however it comes.
            Runtime.getRuntime()
                    .addShutdownHook(new Thread(() -> Output.json(tally.summary(publisher.eventsResent()))));
            source.forEach(batch -> publisher
                    .send(batch.events())
                    .thenAccept(outcomes -> reports.acked(tally.count(batch, outcomes))));
            publisher.finish();
        }
        return tally.hasRejected() ? Main.REJECTED : 0;
    }
}
