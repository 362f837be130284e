/* Makes orphans: `orphans COUNT` forks COUNT processes whose parent ends before they do, so that each is left to PID 1.
 *
 * A parent of BATCH of them at a time; they end when the pipe that their parent held closes, that is with their parent.
 *
 * Build: cc -O2 -static -o orphans orphans.c
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCH = 100 };

/* Forks them, and ends. */
static void parent(int count)
{
	int life[2];
	char end;

	if (pipe(life))
		_exit(1);
	for (int made = 0; made < count; made++) {
		pid_t pid = fork();

		if (pid < 0)
			_exit(1);
		if (pid == 0) {
			close(life[1]);
			_exit(read(life[0], &end, 1) < 0);
		}
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	long left = argc > 1 ? atol(argv[1]) : 0;

	while (left > 0) {
		int count = left < BATCH ? (int)left : BATCH, status;
		pid_t pid = fork();

		if (pid == 0)
			parent(count);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
			perror("orphans: fork");
			return 1;
		}
		left -= count;
	}
	return 0;
}
