/* The floor for throughput: a thread a direction, blocking, 256 KiB buffers, one connection after the other.
 *
 *   copy_loop unix:LISTEN unix:TARGET
 *
 * Build: cc -O2 -static -pthread -o copy_loop copy_loop.c
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, BACKLOG = 128 };

struct direction {
	int from, to;
	char buffer[BUFFER];
};

static void *copy(void *argument)
{
	struct direction *d = argument;
	ssize_t n;
	while ((n = read(d->from, d->buffer, sizeof d->buffer)) > 0)
		for (ssize_t done = 0, w; done < n; done += w)
			if ((w = write(d->to, d->buffer + done, n - done)) <= 0)
				goto end;
end:
	shutdown(d->to, SHUT_WR);
	return NULL;
}

static struct sockaddr_un address(const char *spec)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, spec + 5, sizeof a.sun_path - 1);
	return a;
}

int main(int argc, char **argv)
{
	static struct direction up, down;
	pthread_t thread;
	if (argc != 3)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	struct sockaddr_un here = address(argv[1]), there = address(argv[2]);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	unlink(here.sun_path);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, BACKLOG) < 0) {
		perror("listen");
		return 1;
	}
	for (int client; (client = accept(listener, NULL, NULL)) >= 0;) {
		int target = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(target, (struct sockaddr *)&there, sizeof there) == 0) {
			up.from = down.to = client;
			up.to = down.from = target;
			pthread_create(&thread, NULL, copy, &up);
			copy(&down);
			pthread_join(thread, NULL);
		}
		close(client);
		close(target);
	}
	return 1;
}
