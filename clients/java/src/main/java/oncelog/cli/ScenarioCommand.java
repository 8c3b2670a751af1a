package oncelog.cli;

import io.grpc.StatusRuntimeException;
import java.util.Map;
import oncelog.client.Client;
import oncelog.client.ErrorDetails;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** Publishes the scenario of clients/README.md, and prints every ack and every break. */
@Command(name = "scenario", description = "Publishes the events that prove a client.")
final class ScenarioCommand extends Main.ServerCommand {
    private static final int EVENTS_PER_REQUEST = 50;

    @Option(names = "--events", paramLabel = "N", defaultValue = "5000", description = "N events. Default: 5000.")
    private int events;

    @Option(names = "--rate", paramLabel = "R", defaultValue = "0", description = "At most R a second; 0 for no limit.")
    private int rate;

    @Override
    int run(Client client) throws Exception {
        if (events < 1 || rate < 0) {
            throw new IllegalArgumentException("--events must be at least 1, and --rate at least 0");
        }
        // The first call takes a second in a cold virtual machine; the rate holds from then on.
        client.stats();
        var source = new Sample(events, EVENTS_PER_REQUEST, rate);
        return PublishCommand.publish(client, source, new Tally(), new PublishCommand.Reports() {
            @Override
            public void acked(long events) {
                Output.json(Map.of("acked", events));
            }

            @Override
            public void broken(StatusRuntimeException cause) {
                Output.json(Map.of("broken", ErrorDetails.describe(cause)));
            }
        });
    }
}
