import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;

/**
 * Clients that keep their connections, of java.net.http: `Ask CONNECTIONS NAME=URL…` asks each on so many connections,
 * with pauses of 300 to 600 ms, and prints a report every second: requests and errors by name.
 */
public class Ask {
    static class Count {
        int requests;
        int errors;
        String last = "";

        synchronized void add(String error) {
            requests++;
            if (error != null) {
                errors++;
                last = error;
            }
        }

        synchronized String json() {
            String text = last.replaceAll("[^A-Za-z0-9 .:_-]", "?");
            return "{\"requests\":" + requests + ",\"errors\":" + errors + ",\"last\":\"" + text + "\"}";
        }
    }

    static void repeat(String url, Count count) {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(10))
                .POST(BodyPublishers.ofString("ask")).build();
        while (true) {
            try {
                int status = client.send(request, BodyHandlers.ofString()).statusCode();
                count.add(status == 200 ? null : "status " + status);
            } catch (Exception error) {
                count.add(error.toString());
            }
            try {
                Thread.sleep(300 + ThreadLocalRandom.current().nextInt(300));
            } catch (InterruptedException error) {
                return;
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Count> counts = new LinkedHashMap<>();
        int connections = Integer.parseInt(arguments[0]);
        for (int i = 1; i < arguments.length; i++) {
            String[] target = arguments[i].split("=");
            Count count = new Count();
            counts.put(target[0], count);
            for (int n = 0; n < connections; n++) {
                new Thread(() -> repeat(target[1], count)).start();
            }
        }
        while (true) {
            Thread.sleep(1000);
            StringBuilder line = new StringBuilder("{");
            for (Map.Entry<String, Count> one : counts.entrySet()) {
                line.append(line.length() > 1 ? "," : "").append('"').append(one.getKey()).append("\":");
                line.append(one.getValue().json());
            }
            System.out.println(line.append("}"));
        }
    }
}
