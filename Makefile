# make test installs what is missing and runs everything; see CONTRIBUTING.md.
GO ?= go
# Some seconds for each target. A number of inputs and not a time: at the end of a time
# the go command now and then reports "context deadline exceeded" as a failure.
FUZZTIME ?= 60000x

.PHONY: build run test fuzz bench soak scale storm lint deps clean

build: ## bin/coatcheck
	$(GO) build -trimpath -o bin/coatcheck ./cmd/coatcheck

run: ## a proxy, a provider and a sample app on loopback
	$(GO) run ./cmd/coatcheck dev

test: deps
	$(GO) vet ./...
	GO="$(GO)" scripts/fuzz.sh $(FUZZTIME)
	$(GO) run ./internal/testreport -allow e2e/allowed-skips.txt -- -race -timeout 18m ./...

fuzz: ## each fuzz target for FUZZTIME
	GO="$(GO)" scripts/fuzz.sh $(FUZZTIME)

bench: ## bench/result.json and a table
	$(GO) run ./bench

soak: ## bench/SOAK.md: what is left of 100,000 sessions; an hour, much of it waiting
	$(GO) test ./bench/soak -count=1 -timeout 3h -v -args -sessions 100000 -idle 90s -to-the-end -out .. $(SOAKFLAGS)

scale: ## bench/SCALE.md: what a session costs among 1,000,000; takes 8 GB of memory and as much disk
	$(GO) test ./bench/scale -count=1 -timeout 3h -v -args -sizes 1000,100000,1000000 -rounds 7 -calls 200 -out .. $(SCALEFLAGS)

storm: ## 10,000 refreshes with a provider that fails; three minutes
	$(GO) test ./e2e -run '^TestRefreshStorm$$' -count=1 -timeout 20m -v -args -storm-refreshes 10000 -storm-people 250 $(STORMFLAGS)

lint:
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@unformatted="$$($(GO) tool gofumpt -l .)"; \
	if [ -n "$$unformatted" ]; then echo "gofumpt -w is due for:"; echo "$$unformatted"; exit 1; fi

deps: ## what the tests need beside Go
	scripts/setup.sh

clean:
	rm -rf bin .tools e2e/provider/node_modules
