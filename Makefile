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
##   make mutants            see which line of FILE=scripts/common.py, or of a sample, no test needs
##   make lint               look the code over
##   make bench              measure it, against C and others (FORMAT=markdown for a README)
##   make soak               the storms of the tests for MINUTES=10
##   make systemd-install    the servers as systemd user services; make systemd-uninstall
##   make distclean          remove .venv and caches too
##
## Variables: NAME=/other, KEY=300, COUNT=5, INTERVAL=0.1, ARGS='any other options',
##            PYTHON=python3.12, VENV=.venv, MINUTES=1, FORMAT=markdown

PYTHON = python3
VENV = .venv
NAME =
KEY =
COUNT =
INTERVAL =
ARGS =
PAIRS = posix-msq posix-shm posix-sem sysv-msq sysv-shm sysv-sem

name = $(if $(NAME),-n '$(NAME)')
key = $(if $(KEY),-k '$(KEY)')
count = $(if $(COUNT),-c '$(COUNT)')
interval = $(if $(INTERVAL),-i '$(INTERVAL)')

# What each target runs: $($@) in a recipe is the variable that is called like the target.
posix-msq-server = posix_msq_server.py $(name) $(count)
posix-msq-client = posix_msq_client.py $(name) $(count) $(interval)
posix-shm-server = posix_shm_server.py $(name) $(count) $(interval)
posix-shm-client = posix_shm_client.py $(name)
posix-sem-server = posix_sem_server.py $(name) $(interval)
posix-sem-client = posix_sem_client.py $(name)
sysv-msq-server = sysv_msq_server.py $(key) $(count)
sysv-msq-client = sysv_msq_client.py $(key) $(count) $(interval)
sysv-shm-server = sysv_shm_server.py $(key) $(count) $(interval)
sysv-shm-client = sysv_shm_client.py $(key)
sysv-sem-server = sysv_sem_server.py $(key) $(interval)
sysv-sem-client = sysv_sem_client.py $(key)

run = '$(VENV)/bin/python' scripts/

.PHONY: help
help:
	@sed -n 's/^## \{0,1\}//p' Makefile

.PHONY: $(PAIRS:=-server) $(PAIRS:=-client)
$(PAIRS:=-server) $(PAIRS:=-client): setup
	@$(run)$($@) $(ARGS)

# The client starts when the server has had time to, and the server has time to show what it did.
.PHONY: $(PAIRS)
$(PAIRS): setup
	@$(run)$($@-server) & server=$$!; \
	trap 'kill $$server; wait $$server' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	sleep 1; $(run)$($@-client) $(ARGS); status=$$?; sleep 1; exit $$status

.PHONY: $(PAIRS:=-clean) clean
$(PAIRS:=-clean): setup
	@$(run)$($(@:clean=server)) --clean
clean: $(PAIRS:=-clean)

.PHONY: status
status:
	@echo '-------- POSIX message queues: /dev/mqueue --------'
	@if mountpoint -q /dev/mqueue; then ls -l /dev/mqueue; else \
	echo 'not mounted; to see them: sudo mkdir -p /dev/mqueue'; \
	echo '                          sudo mount -t mqueue mqueue /dev/mqueue'; fi
	@echo '-------- POSIX shared memory and semaphores (sem.*): /dev/shm --------'
	@ls -l /dev/shm
	@echo '-------- System V: ipcs --------'
	@ipcs

.PHONY: demo
demo: setup
	@PYTHON="$$PWD/$(VENV)/bin/python" sh tests/demo.sh

.PHONY: setup
setup: $(VENV)/.setup
$(VENV)/.setup: requirements.txt
	$(PYTHON) -m venv '$(VENV)'
	'$(VENV)/bin/python' -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch '$@'

# What only development needs comes on top of that.
$(VENV)/.setup-tests: $(VENV)/.setup tests/requirements.txt
	'$(VENV)/bin/python' -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch '$@'

.PHONY: test
test: $(VENV)/.setup-tests
	'$(VENV)/bin/python' -m pytest -q -n 4 --dist loadgroup $(ARGS) tests

# A script, a unit or the Makefile, of which every line is tried; without it, a sample of all.
FILE =
.PHONY: mutants
mutants: $(VENV)/.setup-tests
	'$(VENV)/bin/python' tests/mutants.py $(if $(FILE),'$(FILE)') $(ARGS)

MINUTES = 10
.PHONY: soak
soak: $(VENV)/.setup-tests
	'$(VENV)/bin/python' tests/soak.py $(MINUTES)

.PHONY: bench
bench: $(VENV)/.setup
	'$(VENV)/bin/python' tests/bench/bench.py $(FORMAT)

.PHONY: lint
lint: $(VENV)/.setup-tests
	'$(VENV)/bin/ruff' check .
	'$(VENV)/bin/ruff' format --check .
	'$(VENV)/bin/mypy'
	'$(VENV)/bin/shellcheck' .ci/run tests/*.sh

UNITS = $(PAIRS:%=ipc-%-server.service) ipc-servers.target ipc-posix-msq-server.socket
units = "$${XDG_CONFIG_HOME:-$$HOME/.config}/systemd/user"
have-user-manager = systemctl --user show-environment >/dev/null 2>&1 || \
	{ echo 'no systemd user manager can be reached: systemctl --user does not work here' >&2; exit 1; }

# The short names are links within the folder: to systemd those are other names of the same unit.
.PHONY: systemd-install systemd-uninstall
systemd-install: setup
	@$(have-user-manager)
	mkdir -p $(units)/ipc-.service.d
	cd systemd && ln -sf "$$PWD"/*.service "$$PWD"/*.target "$$PWD"/*.socket $(units)/
	ln -sf "$$PWD"/systemd/ipc-.service.d/* $(units)/ipc-.service.d/
	for short in msq shm sem; do \
	ln -sf ipc-posix-$$short-server.service $(units)/ipc-$$short-server.service; done
	systemctl --user daemon-reload
systemd-uninstall:
	@$(have-user-manager)
	systemctl --user --quiet stop $(UNITS) 2>/dev/null || true
	systemctl --user --quiet disable $(UNITS) 2>/dev/null || true
	rm -f $(units)/ipc-.service.d/common.conf
	rmdir $(units)/ipc-.service.d 2>/dev/null || true
	for short in msq shm sem; do rm -f $(units)/ipc-$$short-server.service; done
	systemctl --user daemon-reload
	systemctl --user reset-failed

.PHONY: distclean
distclean:
	if [ -e $(VENV)/.setup ]; then $(MAKE) --no-print-directory clean; fi
	rm -rf '$(VENV)' .*_cache .hypothesis scripts/__pycache__ tests/__pycache__
