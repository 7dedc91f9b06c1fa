# Everything a newcomer or CI calls. Each target is safe to repeat and asks nothing.
SHELL := /bin/bash
DATA ?= ../shared/data
export DATA

.PHONY: help setup build install test test-data bench demo up down clean

help: ## Show what there is to call
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 12

setup: ## Install what building and testing need
	@scripts/setup

build: setup ## Build the extension's library, its script and the gateway
	@scripts/build

install: build ## Install into the server that pg_config names
	@scripts/install

test: install ## Run every test that a clone alone can run
	@scripts/test

test-data: install ## Run the tests on the shared data, DATA=../shared/data
	@scripts/test-data

bench: install ## Run the benchmarks on the shared data
	@scripts/setup bench
	@scripts/bench

demo: ## Build, start a private cluster, index PostgreSQL's manual and ask three questions
	@scripts/setup demo
	@scripts/build
	@scripts/install
	@scripts/demo

up: install ## Start the private cluster and print its URL as the last line
	@scripts/cluster up

down: ## Stop the private cluster
	@scripts/cluster down

clean: down ## Remove what the build left in the cache
	@scripts/clean
