/* A thread per connection and two writes per request, with the default action for SIGPIPE. */
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void *serve(void *argument) {
    int connection = (int)(intptr_t)argument;
    char request[64];
    while (read(connection, request, sizeof request) > 0) {
        write(connection, "see", 3);
        usleep(20000);
        write(connection, "it\n", 3);
    }
    close(connection);
    return NULL;
}

int main(int count, char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (count != 2)
        return 2;
    signal(SIGPIPE, SIG_DFL);
    address.sin_port = htons((uint16_t)atoi(arguments[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128))
        return 1;
    for (;;) {
        pthread_t thread;
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)connection) == 0)
            pthread_detach(thread);
        else
            close(connection);
    }
}
