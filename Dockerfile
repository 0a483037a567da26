# For those who have a daemon; `make images` builds the same images without one.
#   docker build --target belay-operator -t registry.example/belay-operator:0.1.0 .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release -p belay-operator -p belay-runner -p belay-cli \
 && mkdir /out && cp target/*/release/belay target/*/release/belay-operator target/*/release/belay-runner /out/ \
 && printf 'nonroot:x:65532:65532::/:/none\n' > /out/passwd

FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/passwd /etc/passwd
USER 65532:65532

FROM base AS belay
COPY --from=build /out/belay /belay
ENTRYPOINT ["/belay"]

FROM base AS belay-runner
COPY --from=build /out/belay-runner /belay-runner
ENTRYPOINT ["/belay-runner"]

FROM base AS belay-operator
COPY --from=build /out/belay-operator /belay-operator
ENTRYPOINT ["/belay-operator"]
