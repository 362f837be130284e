/* Stamps the guest's monotonic clock, nanoseconds fine, the same way under every init that is compared.
 *
 *   as PID 1 (init=…/stamp-pid1)    keeps the time in its environment (STAMP_PID1) and becomes the init that the word bench_init=
 *                                   of the kernel's command line names, else /sbin/init
 *   as /usr/bin/envd                takes the time of its own exec, leaves a child that asks GET /health every 2 ms until it is
 *                                   204, and becomes /usr/bin/envd.real. The child then prints, in one write:
 *                                       stamp: pid1 NS exec NS healthy NS init PROGRAM
 *   as stamp-kill PID               prints  stamp: kill NS  with the time just before its SIGKILL to PID
 *
 * Nothing is printed before envd is healthy: a serial port costs time. PID 1's time is read from /proc/1/environ, and what PID 1
 * has become from /proc/1/exe.
 *
 * Build: cc -O2 -static -o stamp stamp.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 49983, PAUSE_NS = 2000000 };

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A line of its own, whatever a getty has left unfinished before it. */
static void print(const char *line)
{
	int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0) {
		(void)!write(fd, line, strlen(line));
		close(fd);
	}
}

static int become_init(char **argv, long long began)
{
	const char *named = getenv("bench_init");
	char time[32];
	snprintf(time, sizeof time, "%lld", began);
	setenv("STAMP_PID1", time, 1);
	argv[0] = (char *)(named ? named : "/sbin/init");
	execv(argv[0], argv);
	return 127;
}

static long long began_of_pid1(void)
{
	static const char name[] = "STAMP_PID1=";
	char text[8192];
	int fd = open("/proc/1/environ", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	close(fd);
	for (char *p = text; n > 0 && p < text + n; p += strnlen(p, text + n - p) + 1)
		if (!strncmp(p, name, sizeof name - 1))
			return atoll(p + sizeof name - 1);
	return 0;
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

static void watch(long long exec)
{
	const struct timespec pause = { 0, PAUSE_NS };
	char line[400], init[200];
	setsid();
	while (!healthy())
		nanosleep(&pause, NULL);
	long long at = now();
	ssize_t n = readlink("/proc/1/exe", init, sizeof init - 1);
	init[n > 0 ? n : 0] = 0;
	snprintf(line, sizeof line, "\nstamp: pid1 %lld exec %lld healthy %lld init %s\n", began_of_pid1(), exec, at, init);
	print(line);
	_exit(0);
}

static int become_envd(char **argv, long long exec)
{
	signal(SIGCHLD, SIG_IGN); /* the child is nobody's to wait for */
	if (fork() == 0) {
		signal(SIGCHLD, SIG_DFL);
		watch(exec);
	}
	signal(SIGCHLD, SIG_DFL);
	execv("/usr/bin/envd.real", argv);
	return 127;
}

static int kill_it(pid_t pid)
{
	char line[64];
	long long at = now();
	if (kill(pid, SIGKILL) < 0)
		return 1;
	snprintf(line, sizeof line, "\nstamp: kill %lld\n", at);
	print(line);
	return 0;
}

int main(int argc, char **argv)
{
	long long began = now();
	if (getpid() == 1)
		return become_init(argv, began);
	if (argc == 2 && strstr(argv[0], "stamp-kill"))
		return kill_it(atoi(argv[1]));
	return become_envd(argv, began);
}
