import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.InputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs the main methods it is asked for, one after the other in one JVM, which is seconds cheaper than a JVM each.
 * Asked on standard input: count, then so many texts (class, standard input, arguments), each u32 length and UTF-8; answered on standard output:
 * u32 exit code, then what the tool printed; what it printed to standard error is added only if the code is not 0.
 */
public final class Tools {
    /** Ends the tool's own flow; some tools catch it and exit once more, so the first code is the one that holds. */
    private static final class Exited extends RuntimeException {
    }

    private static Integer firstCode;
    private static final List<Runnable> hooks = new ArrayList<>();

    public static void main(String[] none) throws Exception {
        DataInputStream asked = new DataInputStream(System.in);
        DataOutputStream answers = new DataOutputStream(System.out);
        Exit.setExitProcedure((code, message) -> {
            firstCode = firstCode == null ? Integer.valueOf(code) : firstCode;
            throw new Exited();
        });
        Exit.setShutdownHookAdder((name, hook) -> hooks.add(hook));
        while (true) {
            int count;
            try {
                count = asked.readInt();
            } catch (EOFException end) {
                Runtime.getRuntime().halt(0);
                return;
            }
            String[] texts = new String[count];
            for (int i = 0; i < count; i++) {
                texts[i] = new String(asked.readNBytes(asked.readInt()), StandardCharsets.UTF_8);
            }
            ByteArrayOutputStream said = new ByteArrayOutputStream();
            int code = run(texts, said);
            answers.writeInt(code);
            answers.writeInt(said.size());
            said.writeTo(answers);
            answers.flush();
        }
    }

    private static int run(String[] texts, ByteArrayOutputStream said) throws Exception {
        InputStream in = System.in;
        PrintStream out = System.out;
        PrintStream err = System.err;
        ByteArrayOutputStream complained = new ByteArrayOutputStream();
        PrintStream kept = new PrintStream(said, true, StandardCharsets.UTF_8);
        System.setIn(new ByteArrayInputStream(texts[1].getBytes(StandardCharsets.UTF_8)));
        System.setOut(kept);
        System.setErr(new PrintStream(complained, true, StandardCharsets.UTF_8));
        firstCode = null;
        try {
            String[] arguments = Arrays.copyOfRange(texts, 2, texts.length);
            scala.Console.withOut(kept, () -> invoke(texts[0], arguments));
        } catch (Exited exited) {
            kept.flush();
        } finally {
            hooks.forEach(Runnable::run);
            hooks.clear();
            kept.flush();
            System.setIn(in);
            System.setOut(out);
            System.setErr(err);
        }
        if (firstCode == null || firstCode == 0) {
            return 0;
        }
        complained.writeTo(said);
        return firstCode;
    }

    private static Object invoke(String name, String[] arguments) {
        try {
            return Class.forName(name).getMethod("main", String[].class).invoke(null, (Object) arguments);
        } catch (ReflectiveOperationException failed) {
            if (firstCode == null) {
                failed.printStackTrace();
                firstCode = 1;
            }
            return null;
        }
    }
}
