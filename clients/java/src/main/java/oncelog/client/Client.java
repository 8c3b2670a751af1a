package oncelog.client;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.regex.Pattern;
import oncelog.v1.Aggregator.GetStatsRequest;
import oncelog.v1.Aggregator.GetStatsResponse;
import oncelog.v1.Aggregator.ListEventsRequest;
import oncelog.v1.AggregatorServiceGrpc;
import oncelog.v1.AggregatorServiceGrpc.AggregatorServiceBlockingStub;

/**
 * A client for one server. Unary calls share a connection; every publisher and reader has its own.
 *
 * <p>Calls that fail throw {@link StatusRuntimeException}; {@link ErrorDetails} has the details.
 */
public final class Client implements AutoCloseable {
    private static final System.Logger LOGGER = System.getLogger(Client.class.getName());
    private static final Pattern HOST_AND_PORT = Pattern.compile("(http://)?(?<target>.+:\\d+)");
    /** The largest event that a server can be configured to accept (16 MiB), and room for its envelope. */
    private static final int MESSAGE_BYTES_MAX = 16 * 1024 * 1024 + 64 * 1024;
    /** How long connecting may take. */
    private static final int CONNECT_TIMEOUT_MILLIS = 5_000;
    /** How long a connection may be silent before it is probed, and how long the reply may take. */
    private static final int KEEPALIVE_INTERVAL_SECONDS = 15;
    private static final int KEEPALIVE_TIMEOUT_SECONDS = 10;
    /** gRPC's own behaviour: it retries unary calls, and spreads calls over the addresses of a name. */
    private static final Map<String, ?> SERVICE_CONFIG = readServiceConfig();

    private final String target;
    private final ManagedChannel channel;

    /**
     * Makes a client of {@code server}, host:port. It connects on the first call.
     *
     * @throws IllegalArgumentException if that is not a server's address
     */
    public Client(String server) {
        var matcher = HOST_AND_PORT.matcher(server);
        if (!matcher.matches()) {
            throw new IllegalArgumentException(
                    "\"" + server + "\" is not the address of a server; expected host:port");
        }
        target = matcher.group("target");
        channel = connect();
    }

    /** Makes a publisher, which connects when there is something to send. */
    public Publisher publisher() {
        return publisher(this::warn);
    }

    /**
     * Makes a publisher that calls {@code onBreak} for every stream, or attempt at one, that ends with events unacked.
     */
    public Publisher publisher(Consumer<StatusRuntimeException> onBreak) {
        return new Publisher(this, onBreak);
    }

    /** Makes a reader for {@code request}, which connects when first used. */
    public EventReader list(ListEventsRequest request) {
        return new EventReader(this, request, this::warn);
    }

    /** Returns the counters of the server and of its topics. */
    public GetStatsResponse stats() {
        return calls().getStats(GetStatsRequest.getDefaultInstance());
    }

    /** Returns the generated client, for calls that need neither resending nor resuming. */
    public AggregatorServiceBlockingStub calls() {
        return AggregatorServiceGrpc.newBlockingStub(channel);
    }

    /** Ends the connection of the unary calls. Publishers and readers are closed separately. */
    @Override
    public void close() {
        channel.shutdownNow();
    }

    /** Makes a connection, which connects on its first call. */
    public ManagedChannel connect() {
        return NettyChannelBuilder.forTarget(target)
                .usePlaintext()
                .defaultServiceConfig(SERVICE_CONFIG)
                .maxInboundMessageSize(MESSAGE_BYTES_MAX)
                .withOption(ChannelOption.CONNECT_TIMEOUT_MILLIS, CONNECT_TIMEOUT_MILLIS)
                .keepAliveTime(KEEPALIVE_INTERVAL_SECONDS, TimeUnit.SECONDS)
                .keepAliveTimeout(KEEPALIVE_TIMEOUT_SECONDS, TimeUnit.SECONDS)
                .keepAliveWithoutCalls(true)
                .build();
    }

    /** The address, for messages. */
    String server() {
        return target;
    }

    private void warn(StatusRuntimeException cause) {
        LOGGER.log(
                System.Logger.Level.WARNING,
                "the stream to {0} broke ({1}); connecting again",
                target,
                ErrorDetails.describe(cause));
    }

    private static Map<String, ?> readServiceConfig() {
        var resource = Objects.requireNonNull(Client.class.getResourceAsStream("/service_config.json"));
        try (Reader reader = new InputStreamReader(resource, StandardCharsets.UTF_8)) {
            return new Gson().fromJson(reader, new TypeToken<Map<String, Object>>() {}.getType());
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
