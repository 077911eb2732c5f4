## PAIR is posix-msq, posix-shm, posix-sem, sysv-msq, sysv-shm or sysv-sem.
##
##   make PAIR-server        run that server (Ctrl-C ends it)
##   make PAIR-client        run that client, in another terminal
##   make PAIR               run both: the server behind, the client in front
##   make PAIR-clean         remove what that pair left; `make clean` does it for all six
##   make status             list every IPC object there is, POSIX and System V
##   make demo               see all six pairs at work, in 20 seconds
##
##   make setup              .venv, with the two packages that the scripts need
##   make test               run the tests
##   make test-bare          run them in a bare container, and wherever else little is to be had
##   make test-musl          run them with a Python built against musl, on Debian
##   make mutants            see which line of FILE=scripts/common.py, or of a sample, no test needs
##   make lint               look the code over
##   make bench              measure it, against C and others, with each of PYTHONS
##   make soak               the storms of the tests for MINUTES=10
##   make systemd-install    the servers as systemd user services; make systemd-uninstall
##   make systemd-no-sandbox for a machine on which their sandbox cannot be made
##   make distclean          remove .venv and caches too
##
## Variables: NAME=/other, KEY=300, COUNT=5, INTERVAL=0.1, ARGS='any other options',
##            PYTHON=python3.12 (to make .venv with), VENV=.venv, MINUTES=1, FORMAT=markdown,
##            FILE=Makefile, PLACE=container, PYTHONS='python3.11 python3.13'

PAIRS = posix-msq posix-shm posix-sem sysv-msq sysv-shm sysv-sem

# Set here, so that one of the environment with the same name is not taken for ours.
PYTHON = python3
VENV = .venv
NAME =
KEY =
COUNT =
INTERVAL =
ARGS =
MINUTES = 10
FORMAT =
PYTHONS =
FILE =
PLACE =

# The variables that each target has; all have PYTHON and VENV too.
posix-msq-server = NAME COUNT ARGS
posix-msq-client = NAME COUNT INTERVAL ARGS
posix-shm-server = NAME COUNT INTERVAL ARGS
posix-shm-client = NAME ARGS
posix-sem-server = NAME INTERVAL ARGS
posix-sem-client = NAME ARGS
sysv-msq-server = KEY COUNT ARGS
sysv-msq-client = KEY COUNT INTERVAL ARGS
sysv-shm-server = KEY COUNT INTERVAL ARGS
sysv-shm-client = KEY ARGS
sysv-sem-server = KEY INTERVAL ARGS
sysv-sem-client = KEY ARGS
clean = NAME KEY
distclean = NAME KEY
test = ARGS
test-bare = ARGS PLACE
test-musl = ARGS
mutants = FILE ARGS
bench = FORMAT PYTHONS ARGS
soak = MINUTES

# Those of one target: a pair has what its server or its client has, PAIR-clean its NAME or KEY.
# The units name .venv, so that what they are installed by has no VENV.
has = PYTHON $(if $(filter systemd-%,$(1)),,VENV) $($(1)) $($(1)-server) $($(1)-client) \
	$(filter NAME KEY,$($(1:clean=server)))

# A variable on the command line that no target of this call has is a mistake, and not ignored.
goals = $(or $(MAKECMDGOALS),help)
given = $(foreach variable,$(.VARIABLES),$(if $(filter command,$(origin $(variable))),$(variable)))
known = $(sort $(foreach goal,$(goals),$(call has,$(goal))))
unknown = $(filter-out $(known),$(given))
$(if $(strip $(unknown)),$(error make $(goals) has no variable $(unknown): it has $(known)))

# An empty one, as of a variable of the shell that is not set, is a mistake too: of an empty VENV,
# /bin/python would be made anew, and an empty NAME would be /test, perhaps for `make clean`.
empty = $(foreach variable,$(filter VENV NAME KEY,$(given)),$(if $(strip $($(variable))),,$(variable)))
$(if $(strip $(empty)),$(error $(strip $(empty)) is empty: leave it out for the default))

# In single quotes for the shell, whatever it contains.
quote = '$(subst ','\'',$(1))'
venv = $(call quote,$(VENV))
python = $(venv)/bin/python

NAME-option = -n
KEY-option = -k
COUNT-option = -c
INTERVAL-option = -i
options = $(foreach variable,$(filter-out ARGS,$($(1))),$\
	$(if $($(variable)),$($(variable)-option) $(call quote,$($(variable)))))
script = $(python) scripts/$(subst -,_,$(1)).py $(call options,$(1))

# With CDPATH set, the shell's cd may go elsewhere.
unexport CDPATH

.PHONY: help
help:
	@sed -n 's/^## \{0,1\}//p' Makefile

# A folder whose name is taken for a target would be up to date, always.
.PHONY: scripts systemd tests
.DEFAULT scripts systemd tests:
	@echo $(call quote,make: there is no target $@: make alone lists them) >&2; exit 2

.PHONY: $(PAIRS:=-server) $(PAIRS:=-client)
$(PAIRS:=-server) $(PAIRS:=-client): setup
	@$(call script,$@) $(ARGS)

# The shell waits for both, since only a shell that waits can end them at once when it is told to.
# What runs in the background has no standard input, unless it is kept open under another number;
# where make was started without one, /dev/null does.
# A client whose server has failed at once is not started.
# Each message is shown once, by the server: the client of a queue is quiet, and the server of a
# segment prints a text when it changes.
# What is ended is the server and the last that was started, $!, which for a moment has no other
# name. It is told twice, as it may still be a copy of the shell the first time, and miss it.
# When the server ends first, as in `make posix-msq | head`, a client would fill the queue and wait for
# ever, or write for nobody: who watches the server tells the shell by SIGUSR1. A semaphore needs none.
# A server that looks at its object every INTERVAL (twice a second, unless the command line says how
# often) runs on for one INTERVAL more, to show what the client did last.
$(filter-out %-msq,$(PAIRS)): INTERVAL = 0.5
watch = (kill -0 $$server && while kill -0 $$server; do sleep 0.2; done && kill -USR1 $$$$) 2>/dev/null &
last-look = $(if $(filter INTERVAL,$($(1)-server)),$(if $(INTERVAL),$(call quote,$(INTERVAL))))
.PHONY: $(PAIRS)
$(PAIRS): setup
	@true 2>/dev/null 3<&0 || exec </dev/null; exec 3<&0; server= started=; \
	finish() { trap '' INT TERM HUP QUIT USR1; trap - EXIT; \
	for turn in first second; do kill $$server $${started:+$$!}; sleep 0.1; done 2>/dev/null; \
	wait; exit $$1; }; trap 'finish $$?' EXIT; \
	trap 'finish 130' INT; trap 'finish 143' TERM; trap 'finish 129' HUP; trap 'finish 131' QUIT; \
	trap 'wait $$server; exit $$?' USR1; started=yes; \
	$(call script,$@-server) $(if $(findstring shm,$@),--changes) & server=$$!; sleep 1; \
	kill -0 $$server 2>/dev/null || wait $$server || exit; \
	$(if $(findstring sem,$@),,$(watch)) \
	$(call script,$@-client) $(if $(findstring msq,$@),-q) $(ARGS) <&3 & \
	wait $$!; status=$$?; started=; sleep 1 $(call last-look,$@); exit $$status

.PHONY: $(PAIRS:=-clean) clean
$(PAIRS:=-clean): setup
	@$(call script,$(@:clean=server)) --clean
clean: setup
	@status=0; $(foreach pair,$(PAIRS),$(call script,$(pair)-server) --clean || status=1;) exit $$status

.PHONY: status
status:
	@echo '-------- POSIX message queues: /dev/mqueue --------'
	@if grep -q ' /dev/mqueue mqueue ' /proc/mounts; then ls -l /dev/mqueue; else \
	echo 'not mounted; to see them: sudo mkdir -p /dev/mqueue'; \
	echo '                          sudo mount -t mqueue mqueue /dev/mqueue'; fi
	@echo '-------- POSIX shared memory and semaphores (sem.*): /dev/shm --------'
	@ls -l /dev/shm || echo 'to have one: sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm'
	@echo '-------- System V: ipcs --------'
	@if command -v ipcs >/dev/null; then ipcs; else \
	echo 'no ipcs (Debian: apt-get install util-linux), so /proc/sysvipc; its keys are decimal:'; \
	cat /proc/sysvipc/msg /proc/sysvipc/shm /proc/sysvipc/sem; fi

.PHONY: demo
demo: setup
	@PYTHON=$(python) exec sh tests/demo.sh

# An environment is there when it was made for what the file asks for (.setup is a copy of it), and
# its Python still finds the packages. The second look is for one who waited for the lock.
is-set-up = cmp -s requirements.txt $(venv)/.setup && \
	$(python) -c 'import posix_ipc, sysv_ipc' 2>/dev/null
# Only one at a time: the lock is on the open file 9, and lasts as long as the shell.
lock = exec 9<requirements.txt; $(PYTHON) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
# What pip writes last are INSTALLER and, before version 26, RECORD: a pip without one of them is one
# that was interrupted. A package that pip left half-way it may neither install nor uninstall, so
# the two are removed first. `python -m venv` leaves a link to a Python that is gone, so that goes too.
has-pip = $(python) -c 'import importlib.metadata as m, sys; \
	whole = all(map(m.distribution("pip").read_text, ["INSTALLER", "RECORD"])); \
	sys.exit(sys.version_info < (3, 10) or not whole)' 2>/dev/null
packages = $(venv)/lib/python*/site-packages
pip = -m pip install --quiet --disable-pip-version-check --no-input -r
pip-install = $(python) $(pip)

.PHONY: setup setup-tests
setup:
	@$(is-set-up) || { \
	fail() { echo "$$*" >&2; exit 1; }; \
	$(PYTHON) -c '' 2>/dev/null || \
		fail 'cannot run $(PYTHON): install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3'; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		fail "$$($(PYTHON) -V) is too old, 3.10 is needed: name a newer one, such as make PYTHON=python3.12"; \
	$(PYTHON) -c 'import venv' 2>/dev/null || \
		fail '$(PYTHON) has no venv: install it (Debian: apt-get install python3-venv)'; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		fail '$(PYTHON) has no pip to give to .venv: install it (Debian: apt-get install python3-venv)'; \
	$(lock); $(is-set-up) || { \
	echo 'setting up' $(venv) >&2; \
	if ! $(has-pip); then \
		[ $(venv) = .venv ] || [ -e $(venv)/pyvenv.cfg ] || [ -z "$$(ls -A $(venv) 2>/dev/null)" ] || \
			fail 'not empty, and no environment:' $(venv); \
		if [ -e $(venv)/pyvenv.cfg ]; then \
		rm -rf $(venv)/bin/python* $(packages)/pip $(packages)/pip-*; fi; \
		find -L $(venv)/bin -name 'python*' -type l -exec rm {} + 2>/dev/null; \
		$(PYTHON) -m venv $(venv) || fail 'no environment could be made in' $(venv); fi; \
	rm -rf $(packages)/posix_ipc* $(packages)/sysv_ipc*; \
	$(pip-install) requirements.txt && $(python) -c 'import posix_ipc, sysv_ipc' || \
		fail 'the two packages could not be installed: pip needs the network, and where PyPI has no' \
		'wheel for this Python a C compiler and its headers (Debian: apt-get install gcc python3-dev)'; \
	cp requirements.txt $(venv)/.setup; }; }

# What only development needs comes on top of that.
setup-tests: setup
	@cmp -s tests/requirements.txt $(venv)/.setup-tests || { $(lock); \
	$(pip-install) tests/requirements.txt && cp tests/requirements.txt $(venv)/.setup-tests; }

.PHONY: test test-bare test-musl
test: setup-tests
	$(python) -m pytest -q -n 8 --dist loadgroup $(ARGS) tests
test-bare: setup-tests
	$(python) tests/places.py $(PLACE) -- $(ARGS)
test-musl: setup-tests
	tests/musl.sh $(ARGS)

# A script, a unit or the Makefile, of which every line is tried; without it, a sample of all.
.PHONY: mutants
mutants: setup-tests
	$(python) tests/mutants.py $(if $(FILE),$(call quote,$(FILE))) $(ARGS)

.PHONY: soak
soak: setup-tests
	$(python) tests/soak.py $(MINUTES)

# Each has an environment of its own, so that no other needs what the scripts are compared with. Of
# that, what cannot be installed is left out of the comparison.
.PHONY: bench
bench: setup
	@set --; for python in $(or $(PYTHONS),$(python)); do \
	version=$$("$$python" -c 'import platform; print(platform.python_version())') || exit; \
	venv=$(venv)/bench/$$version; \
	cat requirements.txt tests/bench/requirements.txt | cmp -s - "$$venv"/.setup || { \
	echo "setting up $$venv" >&2; \
	"$$python" -m venv "$$venv" && "$$venv"/bin/python $(pip) requirements.txt || exit; \
	if "$$venv"/bin/python $(pip) tests/bench/requirements.txt; then \
	cat requirements.txt tests/bench/requirements.txt >"$$venv"/.setup; fi; }; \
	set -- "$$@" --python "$$venv"/bin/python; done; \
	exec $(python) tests/bench/bench.py $(FORMAT) "$$@" $(ARGS)

.PHONY: lint
lint: setup-tests
	$(venv)/bin/ruff check .
	$(venv)/bin/ruff format --check .
	$(venv)/bin/mypy
	$(venv)/bin/shellcheck .ci/run tests/*.sh

UNITS = $(PAIRS:%=ipc-%-server.service) ipc-servers.target ipc-posix-msq-server.socket
SHORT = ipc-msq-server.service ipc-shm-server.service ipc-sem-server.service
# Not ~/.config/systemd/user, where `systemctl --user disable` removes the link to a unit too.
units = "$${XDG_DATA_HOME:-$$HOME/.local/share}"/systemd/user
# There `enable` makes a second link to a unit, which counts first: it must not stay with a checkout
# that has moved.
enabled = "$${XDG_CONFIG_HOME:-$$HOME/.config}"/systemd/user
# Drop-ins for all units whose names begin so (systemd.unit(5)). Of all drop-ins of a unit, wherever
# they lie, the name that sorts last wins: 00- leaves the last word to your own 10-memory.conf.
folders = $(units)/ipc-posix-.service.d $(units)/ipc-sysv-.service.d
here = $(call quote,$(CURDIR)/systemd)
have-user-manager = systemctl --user show-environment >/dev/null 2>&1 || { \
	echo 'systemctl --user reaches no manager: log in as yourself (not by su or sudo) where systemd' \
	'runs; elsewhere, as in a container, make PAIR-server runs a server in the foreground' >&2; exit 1; }

# The short names are links within the folder: to systemd those are other names of the same unit.
.PHONY: systemd-install systemd-uninstall systemd-no-sandbox
systemd-install: setup
	@$(have-user-manager)
	mkdir -p $(folders)
	for unit in $(UNITS); do ln -sf $(here)/$$unit $(units)/; done
	for unit in $(UNITS); do [ ! -L $(enabled)/$$unit ] || ln -sf $(here)/$$unit $(enabled)/; done
	for folder in $(folders); do rm -f "$$folder"/common.conf "$$folder"/no-sandbox.conf; \
	ln -sf $(here)/common.conf "$$folder"/00-common.conf; done
	for unit in $(SHORT); do ln -sf "ipc-posix-$${unit#ipc-}" $(units)/$$unit; done
	systemctl --user daemon-reload
systemd-no-sandbox: systemd-install
	for folder in $(folders); do ln -sf $(here)/no-sandbox.conf "$$folder"/01-no-sandbox.conf; done
	systemctl --user daemon-reload
systemd-uninstall:
	@$(have-user-manager)
	systemctl --user --quiet stop $(UNITS) 2>/dev/null || true
	systemctl --user --quiet disable $(UNITS) 2>/dev/null || true
	for unit in $(UNITS) $(SHORT); do rm -f $(units)/$$unit; done
	for folder in $(folders); do rm -f "$$folder"/00-common.conf "$$folder"/01-no-sandbox.conf; done
	rmdir $(folders) 2>/dev/null || true
	systemctl --user daemon-reload
	systemctl --user reset-failed $(UNITS) 2>/dev/null || true

# Another VENV is removed only if it is a virtual environment.
.PHONY: distclean
distclean:
	-if $(is-set-up); then $(MAKE) --no-print-directory clean; fi
	if [ $(venv) = .venv ] || [ -e $(venv)/pyvenv.cfg ]; then rm -rf $(venv); fi
	rm -rf .*_cache .hypothesis scripts/__pycache__ tests/__pycache__ tests/bench/__pycache__
