package oncelog.cli;

import com.google.gson.Gson;
import java.io.BufferedOutputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** Standard output and standard error, in UTF-8 whatever the locale. */
final class Output {
    private static final int BUFFER_BYTES = 64 * 1024;

    static final PrintStream OUT = new PrintStream(
            new BufferedOutputStream(new FileOutputStream(FileDescriptor.out), BUFFER_BYTES),
            false,
            StandardCharsets.UTF_8);
    static final PrintStream ERR =
            new PrintStream(new FileOutputStream(FileDescriptor.err), true, StandardCharsets.UTF_8);

    private static final Gson RECORDS = new Gson();

    private Output() {}

    /** Prints a line. */
    static void print(String line) {
        OUT.append(line).append('\n');
    }

    /** Prints a map or a record as one line of JSON, at once. */
    static void json(Object object) {
        synchronized (OUT) {
            OUT.append(RECORDS.toJson(object)).append('\n').flush();
        }
    }

    /** Prints a message for people. */
    static void note(String line) {
        ERR.append(line + "\n");
    }

    /** Writes what was printed. */
    static void flush() throws IOException {
        if (OUT.checkError()) {
            throw new IOException("cannot write to standard output");
        }
    }
}
