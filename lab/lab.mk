# The lab: tests in emulated machines with hardware-style KVM (docs/lab.md).
#
#   make lab                      everything that states a need of the machine, on emulated SVM, with -short
#   make lab RUN=TestProbe        only what matches, line by line
#   make lab BACKEND=vmx          on emulated VT-x, the core set
#   make lab-tear                 the test of patching, of thousands of patches
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

# What CI runs (docs/lab.md, "What CI runs"). Each machine may take so many seconds, whatever it does.
LAB_SECONDS     ?= 900
LAB_VMX_SECONDS ?= 1200
LAB_TEAR        := -only './patch/running=$(TEAR)'
LAB_TABLES      := -only './cmd/cloister=TestEveryCauseIsCounted|TestEveryFaultIsReported'

.PHONY: lab lab-tear lab-ci lab-vmx-ci lab-shell lab-vmx lab-scenarios build/lab

lab: build/lab ## run the tests in an emulated machine with hardware-style KVM (BACKEND=svm|vmx, RUN=regexp)
	@exec build/lab -machine $(BACKEND) -json $(LAB_JSON) -out build/lab-out/$(BACKEND) -timeout 60m $(if $(RUN),-v -run '$(RUN)',-short) $(if $(filter vmx%,$(BACKEND)),-short) $(LABFLAGS) $(LAB_PACKAGES)

# lab_run MACHINE SECONDS ARGUMENTS…: one machine of CI. What this machine cannot have (status 4) is "not run" in the
# table, and a failure where CI_LAB says that it must be there. --foreground: an outer time limit that
# ends this one must reach the lab.
define lab_run
lab_run() { \
  local machine=$$1 seconds=$$2 status=0; shift 2; \
  timeout --foreground --kill-after=60 "$$seconds" build/lab -machine "$$machine" -json "build/lane-lab-$$machine.json" \
    -out "build/lab-out/$$machine" -short "$$@" || status=$$?; \
  if [ $$status = 4 ] && [ -z "$$CI_LAB" ]; then echo "lab: $$machine was not run; CI_LAB=1 makes that a failure" >&2; return 0; fi; \
  if [ $$status = 124 ]; then echo "lab: $$machine: not done after $$seconds s" >&2; fi; \
  return $$status; }
endef

# One machine after the other: two emulators would share the CPUs and both be late.
lab-ci: build/lab ## what CI runs on emulated SVM, in at most LAB_SECONDS for each of its machines
	@$(lab_run); bad=0; \
	lab_run svm $(LAB_SECONDS) $(LAB_TABLES) $(LAB_TEAR) ./lab ./internal/testenv ./internal/kvm ./guest/mem ./patch/running ./cmd/cloister || bad=1; \
	lab_run svm-parallel $(LAB_SECONDS) ./vcpu ./vmm || bad=1; \
	exit $$bad

lab-vmx-ci: build/lab ## what CI runs on emulated VT-x, in at most LAB_VMX_SECONDS
	@$(lab_run); lab_run vmx $(LAB_VMX_SECONDS) -skip TestMillionKicks $(LAB_TABLES) $(LAB_TEAR) ./lab ./internal/testenv ./internal/kvm ./guest/mem ./vcpu ./vmm ./patch/running ./cmd/cloister

lab-vmx: ## the same on emulated VT-x, the core set (RUN=regexp)
	@exec $(MAKE) lab BACKEND=vmx

lab-tear: build/lab ## make tear in an emulated machine (BACKEND=svm|svm-parallel: 20,000 patches; vmx: 1000)
	@exec build/lab -machine $(BACKEND) -timeout 60m -json $(LAB_JSON) -out build/lab-out/$(BACKEND) -v -run '$(TEAR)' $(LABFLAGS) ./patch/running

lab-shell: build/lab ## a shell in an emulated machine (leave with exit; Ctrl-a c is QEMU's monitor)
	@exec build/lab -machine $(BACKEND) -shell $(LABFLAGS)

lab-scenarios: build/lab ## the scripts of lab/testdata on each emulated SVM machine
	@bad=0; for m in svm svm-shadow svm-plain; do \
	  build/lab -machine $$m -json build/lane-lab-$$m-scenarios.json -out build/lab-out/$$m -v -run TestScenarios $(LABFLAGS) ./lab || bad=1; \
	done; exit $$bad

build/lab:
	@mkdir -p build
	@CGO_ENABLED=0 go build -o build/lab ./lab/cmd/lab
