"""What is drawn: operators under the roofs, as picture and page; timelines as Gantt charts and traces."""
