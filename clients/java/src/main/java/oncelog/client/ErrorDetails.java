package oncelog.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * The server's details of an error, beside its code and message.
 *
 * @param violations each names a field, for example events[1].source, and the limit it breaks
 * @param info has a reason for programs and, for a bad event, the positions of its request in the stream and of the
 *     event in the request, from 0
 */
public record ErrorDetails(List<BadRequest.FieldViolation> violations, Optional<ErrorInfo> info) {

    /** Returns the details of {@code error}; none if it has none. */
    public static ErrorDetails of(StatusRuntimeException error) {
        List<BadRequest.FieldViolation> violations = new ArrayList<>();
        Optional<ErrorInfo> info = Optional.empty();
        for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
            try {
                if (detail.is(BadRequest.class)) {
                    violations.addAll(detail.unpack(BadRequest.class).getFieldViolationsList());
                } else if (detail.is(ErrorInfo.class)) {
                    info = Optional.of(detail.unpack(ErrorInfo.class));
                }
            } catch (InvalidProtocolBufferException unreadable) {
                // The error itself matters more than its details.
            }
        }
        return new ErrorDetails(List.copyOf(violations), info);
    }

    /** Formats an error on one line: its code, its message, and the cause if a connection failed. */
    public static String describe(StatusRuntimeException error) {
        String message = message(error);
        return error.getStatus().getCode() + (message.isEmpty() ? "" : ": " + message);
    }

    static String message(StatusRuntimeException error) {
        String message = Optional.ofNullable(error.getStatus().getDescription()).orElse("");
        Throwable root = error.getStatus().getCause();
        while (root != null && root.getCause() != null) {
            root = root.getCause();
        }
        if (root == null || root.getMessage() == null || message.contains(root.getMessage())) {
            return message;
        }
        return message.isEmpty() ? root.getMessage() : message + ": " + root.getMessage();
    }
}
