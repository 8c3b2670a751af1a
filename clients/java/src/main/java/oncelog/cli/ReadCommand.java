package oncelog.cli;

import oncelog.client.Client;
import oncelog.client.EventReader;
import oncelog.v1.Aggregator.ListEventsRequest;
import oncelog.v1.Aggregator.ListEventsResponse;
import oncelog.v1.Aggregator.StoredEvent;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** Prints events, and at the end, however it comes, the cursor to resume from. */
abstract class ReadCommand extends Main.ServerCommand {
    @Option(names = "--topic", paramLabel = "TOPIC", defaultValue = "", description = "Of this topic only.")
    private String topic;

    @Option(names = "--cursor", paramLabel = "CURSOR", defaultValue = "", description = "Resumes after this cursor.")
    private String cursor;

    @Option(names = "--limit", paramLabel = "N", defaultValue = "0", description = "At most N events; 0 for all.")
    private long limit;

    private final boolean follow;

    private ReadCommand(boolean follow) {
        this.follow = follow;
    }

    @Override
    int run(Client client) throws Exception {
        if (limit < 0) {
            throw new IllegalArgumentException("--limit must be at least 0");
        }
        var request = ListEventsRequest.newBuilder()
                .setTopic(topic)
                .setCursor(cursor)
                .setLimit(limit)
                .setFollow(follow)
                .build();
        try (EventReader reader = client.list(request)) {
            // An interrupt ends the process, but not without the cursor.
            Runtime.getRuntime().addShutdownHook(new Thread(() -> printCursor(reader)));
            while (reader.hasNext()) {
                ListEventsResponse response = reader.next();
                for (StoredEvent event : response.getEventsList()) {
                    Output.print(JsonLine.format(event));
                }
                Output.flush();
            }
        }
        return 0;
    }

    private static void printCursor(EventReader reader) {
        if (!reader.cursor().isEmpty()) {
            Output.note("cursor: " + reader.cursor());
        }
    }

    @Command(name = "list", description = "Prints stored events.")
    static final class List extends ReadCommand {
        List() {
            super(false);
        }
    }

    @Command(name = "follow", description = "Prints stored events, and goes on as events come.")
    static final class Follow extends ReadCommand {
        Follow() {
            super(true);
        }
    }
}
