/* The floor for a boot: a PID 1 that does what envd needs and nothing else, with no logging and no error handling.
 *
 * System calls before envd's exec: 8 mounts and 2 mkdir, 4 open/write/close of cgroup.subtree_control, 3 mkdir of cgroups and 4 more
 * open/write/close for the controllers of system.slice, 5 open/write/close for init.scope and envd's weights, fork; in the child 2
 * open/write/close (cgroup.procs, oom_score_adj), setsid, setpriority, ioprio_set, 2 prlimit, execve. Afterwards: a socket,
 * 7 ioctl for lo, eth0 and the route, sethostname, then wait; an envd that dies is started again at once.
 *
 * Called as c_floor_supervised it leaves envd to a process of its own, a second execution of this program: that is the floor for whoever
 * has a supervisor between PID 1 and envd. It adds a fork and an execve.
 *
 * Build: cc -O2 -static -o c_floor c_floor.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CG "/sys/fs/cgroup/"
#define SUPERVISOR "supervisor"

static void put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		(void)!write(fd, value, strlen(value));
		close(fd);
	}
}

static void mounts(void)
{
	mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666");
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate,memory_recursiveprot");
	mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL);
}

static void control(const char *file)
{
	put(file, "+cpu");
	put(file, "+io");
	put(file, "+memory");
	put(file, "+pids");
}

static void cgroups(void)
{
	control(CG "cgroup.subtree_control");
	mkdir(CG "init.scope", 0755);
	mkdir(CG "envd", 0755);
	mkdir(CG "system.slice", 0755);
	control(CG "system.slice/cgroup.subtree_control");
	put(CG "init.scope/cgroup.procs", "1");
	put(CG "envd/memory.min", "52428800");
	put(CG "envd/memory.low", "104857600");
	put(CG "envd/cpu.weight", "1000");
	put(CG "envd/io.weight", "default 10000");
}

static void become_envd(void)
{
	char *argv[] = { "envd", NULL };
	char *env[] = { "GOTRACEBACK=all", "GOMEMLIMIT=256MiB",
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL };
	struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY }, files = { 1024, 524288 };
	put(CG "envd/cgroup.procs", "0");
	put("/proc/self/oom_score_adj", "-1000");
	setsid();
	setpriority(PRIO_PROCESS, 0, -20);
	syscall(SYS_ioprio_set, 1, 0, (1 << 13) | 4);
	setrlimit(RLIMIT_CORE, &core);
	setrlimit(RLIMIT_NOFILE, &files);
	execve("/usr/bin/envd", argv, env);
	_exit(127);
}

static void in_address(struct sockaddr *to, const char *text)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	inet_pton(AF_INET, text, &a.sin_addr);
	memcpy(to, &a, sizeof a);
}

static void up(int s, const char *name, const char *address, const char *mask)
{
	struct ifreq r = { 0 };
	strncpy(r.ifr_name, name, IFNAMSIZ - 1);
	if (address) {
		in_address(&r.ifr_addr, address);
		ioctl(s, SIOCSIFADDR, &r);
		in_address(&r.ifr_netmask, mask);
		ioctl(s, SIOCSIFNETMASK, &r);
	}
	r.ifr_flags = IFF_UP | IFF_RUNNING;
	ioctl(s, SIOCSIFFLAGS, &r);
}

static void network(void)
{
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	up(s, "lo", NULL, NULL);
	up(s, "eth0", "169.254.0.21", "255.255.255.252");
	in_address(&route.rt_dst, "0.0.0.0");
	in_address(&route.rt_genmask, "0.0.0.0");
	in_address(&route.rt_gateway, "169.254.0.22");
	ioctl(s, SIOCADDRT, &route);
	close(s);
}

static void become_supervisor(void)
{
	char *argv[] = { SUPERVISOR, NULL }, *env[] = { NULL };
	execve("/proc/self/exe", argv, env);
	_exit(127);
}

static pid_t start(void become(void))
{
	pid_t pid = fork();
	if (pid == 0)
		become();
	return pid;
}

static void keep_up(void become(void), pid_t child)
{
	for (;;) {
		pid_t dead = wait(NULL);
		if (dead == child)
			child = start(become);
		else if (dead < 0)
			pause();
	}
}

int main(int argc, char **argv)
{
	if (argc > 0 && !strcmp(argv[0], SUPERVISOR))
		keep_up(become_envd, start(become_envd));
	void (*first)(void) = argc > 0 && strstr(argv[0], "supervised") ? become_supervisor : become_envd;
	mounts();
	cgroups();
	pid_t child = start(first);
	network();
	sethostname("e2b.local", 9);
	keep_up(first, child);
}
