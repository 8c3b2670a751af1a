package oncelog.client;

/** The server violates the contract; retrying will not help. */
public final class ContractException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    ContractException(String description) {
        super("the server broke the contract: " + description);
    }
}
