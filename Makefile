# Everything that is done with this repository by hand or by CI. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# Compose v2 where the engine has it, else docker-compose 1.29.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
# What an image is labelled with.
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

.PHONY: help
help:  ## List the targets
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	    printf '  make %-18s %s\n' "$$target" "$$text"; done

.PHONY: setup
setup:  ## Make .venv and install RabbitMQ, unless they exist
	@scripts/setup

.PHONY: setup-tests
setup-tests:  ## The same, and what only tests need: chromium, promtool, amtool, curl, Node.js and a generator of clients
	@scripts/setup tests
	@scripts/tools

.PHONY: demo
demo: setup  ## Watch real orders go through the whole stack, with the books audited at the end
	@$(BIN)/ordersaga demo

# Tests start hundreds of processes, and each would compile all of the project again.
test test-extended test-seeds coverage check test-compose test-matrix: export PYTHONDONTWRITEBYTECODE =

.PHONY: test
test: setup-tests  ## Run the tests: all but the extended ones and those of the containers
	$(BIN)/pytest tests --ignore tests/compose -m 'not extended' -n auto --dist worksteal

.PHONY: test-extended
test-extended: setup-tests  ## Run the extended tests, which start stacks and clusters for rare cases: before a release
	$(BIN)/pytest tests --ignore tests/compose -m extended -n auto --dist worksteal

# What `make coverage` runs: paths and options of pytest.
TESTS ?= tests --ignore tests/compose

.PHONY: coverage
coverage: setup-tests  ## Run TESTS (all) and list the lines and branches that none of them takes
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TESTS) -n auto --dist worksteal; status=$$?; \
	    $(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

.PHONY: check
check: setup-tests lint lint-api  ## The gate before a commit: what `make lint` and `make lint-api` do, and the unit tests
	$(BIN)/pytest tests/unit

.PHONY: lint
lint: setup  ## Check the code without running it: format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: setup  ## Format the code and apply ruff's fixes
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: api-diff
api-diff: setup  ## Show how messages, OpenAPI documents and metrics differ from the samples of REF (HEAD)
	@$(BIN)/python -m tests.support.api_samples $(REF)

.PHONY: api-samples
api-samples: setup  ## Write the contracts in docs/api and the sample of the metrics, after an intended change
	@$(BIN)/python -m tests.support.api_samples --write

.PHONY: lint-api
lint-api: setup  ## Check the published OpenAPI and AsyncAPI documents with Redocly's linter, which npm downloads
	@scripts/tools
	@scripts/lint-api/run

.PHONY: kubernetes
kubernetes: setup  ## Write the files of deploy/kubernetes that are made from others, such as the alerts
	@$(BIN)/python deploy/kubernetes/copies.py

.PHONY: lint-kubernetes
lint-kubernetes: setup  ## Check the manifests of deploy/kubernetes with checkov and trivy
	@scripts/tools
	@scripts/tools kubernetes
	@scripts/lint-kubernetes

.PHONY: api-compatibility
api-compatibility: setup  ## Name what breaks clients of the released contract in docs/api/released
	@$(BIN)/python -m tests.support.api_compatibility

.PHONY: api-release
api-release: setup  ## Make the present contract the released one, at a release
	@$(BIN)/python -m tests.support.api_compatibility --release

.PHONY: lock
lock:  ## Resolve the dependencies again into locks/
	uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --extra grpc --extra tracing \
	    -o locks/runtime.lock
	uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --all-extras --group dev \
	    -c locks/runtime.lock -o locks/development.lock
	uv pip compile locks/tools.in --universal --generate-hashes --python-version 3.11 -o locks/tools.lock
	uv pip compile locks/kubernetes.in --universal --generate-hashes --python-version 3.11 -o locks/kubernetes.lock
	uv pip compile locks/uv.in --universal --generate-hashes --python-version 3.11 -o locks/uv.lock

.PHONY: sbom
sbom: setup  ## Write the software bill of materials of the image to dist/sbom.json (CycloneDX)
	@scripts/sbom

.PHONY: audit-dependencies
audit-dependencies: setup  ## Look the locked packages up in the data about known vulnerabilities, if it can be reached
	@scripts/tools
	@$(BIN)/python scripts/audit_dependencies.py .venv/.tools/bin/pip-audit locks/runtime.lock

.PHONY: bench
bench: setup  ## Measure the goals for speed on a fresh stack, beside the committed figures; ONLY=full,alone is shorter
	@$(BIN)/python -m benchmarks.goals $${ONLY:+--only $$ONLY} $${MANY:+--many $$MANY} $${SAVE:+--save}

.PHONY: overload
overload: setup  ## Offer a fresh stack twice what it can do for three minutes, with a kill in it; DURATION is the time
	@$(BIN)/python -m benchmarks.overload --seconds $${DURATION:-180}

# Simulations of the whole system take most of the time: about an hour.
.PHONY: test-seeds
test-seeds: setup-tests  ## Run the tests that have a long form in it, randomized ones with up to 200 seeds
	ORDERSAGA_TEST_SEEDS=200 $(BIN)/pytest tests --ignore tests/compose -m 'long_form or hypothesis' -n auto --dist worksteal

.PHONY: simulate
simulate: setup  ## Run 10,000 seeds of disasters on a virtual clock and check every invariant; SEEDS=100 is shorter
	$(BIN)/ordersaga simulate --seeds $${SEEDS:-10000}

.PHONY: mutants
mutants: setup-tests  ## Put each fault of tests/mutants into a copy of the code, and let the simulation find it
	$(BIN)/python -m tests.mutants --seeds $${SEEDS:-1000}

.PHONY: test-holds
test-holds: setup-tests  ## Let 10,000 holds expire while orders arrive, and check the stock
	@HOLDS=10000 $(BIN)/pytest tests/integration/test_holds.py -k under_load -o log_cli=true -o log_cli_level=INFO

.PHONY: test-grpc
test-grpc: setup-tests  ## Place 1000 orders at once over gRPC, with room for half of them, and check the books
	@ORDERS=1000 $(BIN)/pytest tests/end_to_end/test_grpc.py -k slot_takes -o log_cli=true -o log_cli_level=INFO

.PHONY: test-events
test-events: setup-tests  ## Read the events of 10,000 orders from any offset, over a restart of the broker
	@EVENT_ORDERS=10000 $(BIN)/pytest tests/integration/test_events.py -k restart

.PHONY: test-webhooks
test-webhooks: setup-tests  ## Send 1000 events to receivers of every kind, and kill the service twenty times meanwhile
	@WEBHOOK_EVENTS=1000 $(BIN)/pytest tests/faults/test_webhook_kills.py -o log_cli=true -o log_cli_level=INFO

.PHONY: test-recovery
test-recovery: setup-tests  ## Lose the broker in the middle of 5,000 orders of all kinds, recover, and check the books
	@RECOVERY_ORDERS=5000 $(BIN)/pytest tests/faults/test_broker_loss.py -o log_cli=true -o log_cli_level=INFO \
	    -o faulthandler_timeout=3600

.PHONY: chaos
chaos: setup  ## Let FAULTS (500) faults of every kind happen to a cluster under load, and check that nothing is lost
	@$(BIN)/ordersaga chaos --cluster --faults $${FAULTS:-500} --minutes $${MINUTES:-120} --seed $${SEED:-1}

.PHONY: test-upgrade
test-upgrade: setup-tests  ## Run the last release beside this one, in either order and back, and rolling restarts, in their long forms
	@ORDERSAGA_TEST_SEEDS=200 $(BIN)/pytest tests/end_to_end/test_upgrade.py tests/end_to_end/test_rolling_restart.py -rs

.PHONY: attack
attack: setup  ## Attack a fresh stack with hostile input and show what it withstands, in less than five minutes
	@$(BIN)/python -m benchmarks.attack

.PHONY: image
image:  ## Build the container image of the services
	docker build --build-arg REVISION=$(REVISION) --tag $${ORDERSAGA_IMAGE:-ordersaga:local} .

.PHONY: check-platforms
check-platforms: setup  ## Check that every package of the image has wheels for amd64 and arm64
	@scripts/check-platforms

.PHONY: up
up:  ## Start the stack in containers
	REVISION=$(REVISION) $(COMPOSE) --project-name ordersaga up --detach --build

.PHONY: down
down:  ## End the stack in containers; its data stays
	$(COMPOSE) --project-name ordersaga down

.PHONY: test-compose
test-compose: setup  ## Test the stack in containers; skipped where no Docker engine answers
	$(BIN)/pytest tests/compose -rs -o faulthandler_timeout=1800

# About six minutes a combination. COMBINATIONS names some of tests/compose/matrix.toml; all by default.
.PHONY: test-matrix
test-matrix: setup  ## Test the stack in containers over old and new versions of Python, RabbitMQ, MongoDB and Compose
	@$(BIN)/python -m tests.compose.matrix $(COMBINATIONS)

.PHONY: test-kubernetes
test-kubernetes: setup-tests  ## Run the pods of deploy/kubernetes as containers; skipped where no Docker engine answers
	$(BIN)/pytest tests/compose/test_kubernetes.py -rs

.PHONY: proto
proto: setup  ## Generate the code of proto/ again, after an intended change of the gRPC contract
	@$(BIN)/python scripts/proto.py order_service/rpc/generated

.PHONY: pages
pages: setup-tests  ## Write what the pages of the console read like in tests/samples/pages, and their pictures in docs/images
	@ORDERSAGA_WRITE_PAGES=1 $(BIN)/pytest tests/integration/test_console_pages.py -k 'reads_as or pictures'

.PHONY: docs
docs: setup  ## Write what the docs take from the code: the saga's picture, the tables of permissions, problems and commands
	@$(BIN)/python -m order_service.diagram docs/saga.md docs/images/saga.svg
	@$(BIN)/python -m tests.support.access_table docs/access.md
	@$(BIN)/python -m tests.support.remote_commands docs/command-line.md
	@$(BIN)/python -m tests.support.problem_page

.PHONY: docs-site
docs-site: setup  ## Build the documentation as a site in site/, with every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # not --quiet, which hides what --strict fails for
	@echo "the site is in site/index.html"
