# The lab: tests in emulated machines with hardware-style KVM (docs/lab.md).
#
#   make lab                      everything that states a need of the machine, on emulated SVM
#   make lab RUN=TestProbe        only what matches, line by line
#   make lab BACKEND=vmx          on emulated VT-x, the core set
#   make lab-ci                   what CI runs
#   make lab BACKEND=svm-shadow   another machine of lab/machine.go
#   make lab LABFLAGS='-append foo=1 -kernel linux-image-rt-amd64'
#
# The lab is the last command of its recipe, so that make (or the shell, which
# execs it) is its parent: it asks the kernel to be told when that dies.

BACKEND ?= svm
RUN     ?=
LABFLAGS ?=
# Emulated VT-x is an order of magnitude slower than emulated SVM: these.
LAB_CORE ?= ./lab ./internal/testenv ./internal/kvm ./vcpu ./vmm
LAB_PACKAGES ?= $(if $(filter vmx%,$(BACKEND)),$(wildcard $(LAB_CORE)),./...)
LAB_JSON := build/lane-lab$(if $(filter svm,$(BACKEND)),,-$(BACKEND)).json

# What CI runs, and how long it may (docs/lab.md, "What CI runs").
LAB_CI_PACKAGES ?= ./lab ./internal/testenv ./internal/kvm ./guest/mem ./vcpu ./vmm
LAB_CI_RUN      ?= TestEveryCauseIsCounted|TestEveryFaultIsReported
LAB_SECONDS     ?= 600

.PHONY: lab lab-ci lab-shell lab-vmx lab-scenarios build/lab

lab: build/lab ## run the tests in an emulated machine with hardware-style KVM (BACKEND=svm|vmx, RUN=regexp)
	@exec build/lab -machine $(BACKEND) -json $(LAB_JSON) -out build/lab-out/$(BACKEND) $(if $(RUN),-v -run '$(RUN)') $(if $(filter vmx%,$(BACKEND)),-short) $(LABFLAGS) $(LAB_PACKAGES)

# Two machines, one after the other. --foreground: an outer time limit that ends this one must reach the lab.
lab-ci: build/lab ## what CI runs of the lab, in at most LAB_SECONDS for each of its machines
	@bad=0; limit="timeout --foreground --kill-after=60 $(LAB_SECONDS)"; \
	$$limit build/lab -json build/lane-lab.json -out build/lab-out/svm -short -skip 'TestScenarios/(exits|spin|zero)' $(LAB_CI_PACKAGES) || bad=1; \
	$$limit build/lab -json build/lane-lab-run.json -out build/lab-out/svm -short -run '$(LAB_CI_RUN)' ./cmd/cloister || bad=1; \
	exit $$bad

lab-vmx: ## the same on emulated VT-x, the core set (RUN=regexp)
	@exec $(MAKE) lab BACKEND=vmx

lab-shell: build/lab ## a shell in an emulated machine (leave with exit; Ctrl-a c is QEMU's monitor)
	@exec build/lab -machine $(BACKEND) -shell $(LABFLAGS)

lab-scenarios: build/lab ## the scripts of lab/testdata on each emulated SVM machine
	@bad=0; for m in svm svm-shadow svm-plain; do \
	  build/lab -machine $$m -json build/lane-lab-$$m-scenarios.json -out build/lab-out/$$m -v -run TestScenarios $(LABFLAGS) ./lab || bad=1; \
	done; exit $$bad

build/lab:
	@mkdir -p build
	@CGO_ENABLED=0 go build -o build/lab ./lab/cmd/lab
