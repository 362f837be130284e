/* Stamps guest-monotonic time on the serial console, then becomes the program it stands in front of.
 *
 * Installed under two names: as the init named on the kernel command line it stamps "pid1", as /usr/bin/envd it
 * stamps "envd" and leaves a child that stamps "healthy" as soon as GET /health answers 204. The program behind is
 * the same path with ".real" added. Every init that is compared gets the same stamps, so their cost cancels out.
 *
 * Build: cc -O2 -static -o stamp stamp.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT 49983

static void stamp(const char *name)
{
	struct timespec t;
	char line[96];
	clock_gettime(CLOCK_MONOTONIC, &t);
	int n = snprintf(line, sizeof line, "stamp: %s %lld%09ld\n", name, (long long)t.tv_sec, t.tv_nsec);
	int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0) {
		(void)!write(fd, line, n);
		close(fd);
	}
}

static int healthy(void)
{
	static const char request[] = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	char answer[64];
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), well = 0;
	if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && write(fd, request, sizeof request - 1) > 0) {
		ssize_t n = read(fd, answer, sizeof answer - 1);
		well = n > 12 && memcmp(answer + 9, "204", 3) == 0;
	}
	close(fd);
	return well;
}

static void watch_health(void)
{
	const struct timespec pause = { 0, 1000000 };
	if (fork() != 0)
		return;
	setsid();
	while (!healthy())
		nanosleep(&pause, NULL);
	stamp("healthy");
	_exit(0);
}

int main(int argc, char **argv)
{
	char real[256];
	(void)argc;
	if (getpid() == 1) {
		stamp("pid1");
		snprintf(real, sizeof real, "/sbin/init.real");
	} else {
		stamp("envd");
		signal(SIGCHLD, SIG_IGN);
		watch_health();
		signal(SIGCHLD, SIG_DFL);
		snprintf(real, sizeof real, "/usr/bin/envd.real");
	}
	execv(real, argv);
	return 127;
}
