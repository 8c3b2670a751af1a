FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin oncelog

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home oncelog \
    && install --directory --owner=oncelog --group=oncelog --mode=0750 /data
COPY --from=build /src/target/release/oncelog /usr/local/bin/oncelog
ENV ONCELOG_LISTEN=0.0.0.0:50051 \
    ONCELOG_DATA_DIR=/data
USER oncelog
VOLUME /data
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["oncelog", "health"]
ENTRYPOINT ["oncelog"]
