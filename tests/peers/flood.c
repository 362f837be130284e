/* What a flood of log lines costs the guest: prints COUNT lines into a pipe and tells the CPU time of writer and drainer.
 *
 *   flood COUNT PIPE PID          into a pipe that process PID drains (envd's standard error, drained by its supervisor)
 *   flood COUNT                   into a pipe of the same size that `cat >/dev/null` drains
 *
 * Prints the sum in nanoseconds. The drainer's time is /proc/PID/schedstat; after the last line it is waited for until it has been
 * idle for a while.
 *
 * Build: cc -O2 -static -o flood flood.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIPE_SIZE = 1 << 20, LINE = 256 };

static long long cpu_of(pid_t pid)
{
	char path[64];
	long long ns = 0;
	snprintf(path, sizeof path, "/proc/%d/schedstat", pid);
	FILE *f = fopen(path, "r");
	if (!f || fscanf(f, "%lld", &ns) != 1)
		ns = 0;
	if (f)
		fclose(f);
	return ns;
}

static long long own_cpu(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void nap(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };
	nanosleep(&t, NULL);
}

/* A line a write, as a program without buffering does it. */
static void print_lines(int fd, long count)
{
	char line[LINE];
	for (long i = 0; i < count; i++) {
		int n = snprintf(line, sizeof line, "flood line %ld: the quick brown fox jumps over the lazy dog\n", i);
		if (write(fd, line, n) < 0)
			exit(1);
	}
}

static void until_drained(int fd, pid_t drainer)
{
	int left = 1;
	while (left && ioctl(fd, FIONREAD, &left) == 0 && left)
		nap(1);
	for (long long before = -1, after = cpu_of(drainer); before != after; after = cpu_of(drainer)) {
		before = after;
		nap(1200); /* longer than the second after which a flood is summed up */
	}
}

static pid_t start_cat(int *to)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) < 0)
		exit(1);
	fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE);
	pid_t pid = fork();
	if (pid == 0) {
		int null = open("/dev/null", O_WRONLY);
		dup2(ends[0], 0);
		dup2(null, 1);
		execlp("cat", "cat", (char *)NULL);
		_exit(127);
	}
	close(ends[0]);
	*to = ends[1];
	nap(200); /* its start is not the drain's cost */
	return pid;
}

int main(int argc, char **argv)
{
	int fd, ours = argc == 4;
	pid_t drainer;
	if (argc != 2 && !ours)
		return 2;
	if (ours) {
		fd = open(argv[2], O_WRONLY);
		drainer = atoi(argv[3]);
	} else {
		drainer = start_cat(&fd);
	}
	if (fd < 0)
		return 1;
	long long before = cpu_of(drainer) + own_cpu();
	print_lines(fd, atol(argv[1]));
	long long written = own_cpu();
	until_drained(fd, drainer);
	printf("%lld\n", written + cpu_of(drainer) - before);
	if (!ours)
		kill(drainer, SIGKILL);
	return 0;
}
