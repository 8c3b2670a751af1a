package oncelog.cli;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.PrintWriter;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import oncelog.client.Client;
import oncelog.client.ErrorDetails;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** The command: {@code java -jar oncelog-java.jar}; clients/README.md describes it. */
@Command(
        name = "oncelog-java",
        description = "Events into oncelog, and out again.",
        subcommands = {
            PublishCommand.class,
            ReadCommand.List.class,
            ReadCommand.Follow.class,
            Main.StatsCommand.class,
            ScenarioCommand.class
        })
public final class Main {
    /** The exit status when events were rejected. */
    static final int REJECTED = 1;
    /** The exit status when the command failed. */
    private static final int FAILED = 2;

    @Option(names = "--help", usageHelp = true, description = "Tells which commands there are.")
    private boolean help;

    private Main() {}

    public static void main(String[] arguments) {
        var command = new CommandLine(new Main())
                .setOut(new PrintWriter(Output.OUT, true))
                .setErr(new PrintWriter(Output.ERR, true))
                .setExecutionExceptionHandler((error, failed, parsed) -> {
                    printError(error);
                    return FAILED;
                });
        int status = command.execute(arguments);
        // Also ends a thread that is reading from a terminal.
        System.exit(status);
    }

    /** Prints the error, then a line for each violated field and one for the reason. */
    private static void printError(Exception error) {
        if (!(error instanceof StatusRuntimeException call)) {
            Output.note("error: " + error.getMessage());
            return;
        }
        Output.note("error: " + ErrorDetails.describe(call));
        ErrorDetails details = ErrorDetails.of(call);
        details.violations()
                .forEach(violation -> Output.note("  " + violation.getField() + ": " + violation.getDescription()));
        details.info().ifPresent(info -> {
            var line = new StringBuilder("  ").append(info.getReason());
            for (Map.Entry<String, String> entry : new TreeMap<>(info.getMetadataMap()).entrySet()) {
                line.append(' ').append(entry.getKey()).append('=').append(entry.getValue());
            }
            Output.note(line.toString());
        });
    }

    /** The option of all commands: the server. */
    abstract static class ServerCommand implements Callable<Integer> {
        @Option(
                names = "--server",
                paramLabel = "HOST:PORT",
                defaultValue = "${env:ONCELOG_SERVER:-127.0.0.1:50051}",
                description = "The server; also ONCELOG_SERVER. Default: ${DEFAULT-VALUE}.")
        private String server;

        @Option(names = "--help", usageHelp = true, description = "Tells what the command takes.")
        private boolean help;

        abstract int run(Client client) throws Exception;

        @Override
        public Integer call() throws Exception {
            try (var client = new Client(server)) {
                return run(client);
            } catch (StatusRuntimeException error) {
                if (error.getStatus().getCode() == Status.Code.DEADLINE_EXCEEDED) {
                    printError(error);
                    Output.note("  no answer from " + server);
                    return FAILED;
                }
                throw error;
            }
        }
    }

    @Command(name = "stats", description = "Prints the counters of the server.")
    static final class StatsCommand extends ServerCommand {
        @Override
        int run(Client client) throws Exception {
            Output.json(JsonLine.stats(client.stats()));
            Output.flush();
            return 0;
        }
    }
}
