module belay.dev/e2e/tools

go 1.25
